// By stdio, which says why it failed; a stream of the standard library would take a folder for an
// empty file.
#include "server/read_input.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "kernels/check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

// Of a file that is read again and again: 30000 API keys, ten times a system's roots.
constexpr size_t kMostOfRegular = size_t{4} << 20;

using File = std::unique_ptr<FILE, int (*)(FILE*)>;

absl::Status Unreadable(const std::string& what) {
  return NotFound("{}: cannot be read: {}", what, std::strerror(errno));
}

// What is left of `file`, `most` bytes at most.
absl::StatusOr<std::string> ReadAll(FILE* file, const std::string& what, size_t most) {
  std::string text;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), file)) > 0;) {
    text.append(buffer, n);
    if (text.size() > most) {
      return InvalidArgument("{}: larger than {} bytes, allowed: at most these", what, most);
    }
  }
  if (std::ferror(file) != 0) return Unreadable(what);
  return text;
}

}  // namespace

absl::StatusOr<std::string> ReadInput(const std::string& path, const std::string& what) {
  const File file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return Unreadable(what);
  return ReadAll(file.get(), what, SIZE_MAX);
}

absl::StatusOr<std::string> ReadRegularFile(const std::string& path, const std::string& what) {
  // What is not regular must neither be waited for (O_NONBLOCK, a FIFO) nor be put in the place of
  // what was looked at (fstat).
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return Unreadable(what);
  const File file(fdopen(fd, "rb"), &std::fclose);
  QUANTD_CHECK(file != nullptr, "fdopen: errno {}", errno);
  struct stat kind;
  if (fstat(fd, &kind) != 0) return Unreadable(what);
  if (!S_ISREG(kind.st_mode)) return InvalidArgument("{}: not a regular file", what);
  return ReadAll(file.get(), what, kMostOfRegular);
}

}  // namespace quantd

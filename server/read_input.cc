// By stdio, which says why it failed; a stream of the standard library would take a folder for an
// empty file.
#include "server/read_input.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "kernels/check.h"
#include "kernels/status.h"

namespace quantd {

absl::StatusOr<std::string> ReadInput(const std::string& path, const std::string& what) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  std::string text;
  if (file != nullptr) {
    char buffer[65536];
    for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0;) {
      text.append(buffer, n);
    }
  }
  if (file == nullptr || std::ferror(file.get()) != 0) {
    return NotFound("{}: cannot be read: {}", what, std::strerror(errno));
  }
  return text;
}

absl::StatusOr<std::string> ReadRegularFile(const std::string& path, const std::string& what,
                                            size_t most) {
  // What is not regular must neither be waited for (O_NONBLOCK, a FIFO) nor be put in the place of
  // what was looked at (fstat).
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  const auto unreadable = [&] {
    return NotFound("{}: cannot be read: {}", what, std::strerror(errno));
  };
  if (fd < 0) return unreadable();
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fdopen(fd, "rb"), &std::fclose);
  QUANTD_CHECK(file != nullptr, "fdopen: errno {}", errno);
  struct stat kind;
  if (fstat(fd, &kind) != 0) return unreadable();
  if (!S_ISREG(kind.st_mode)) return InvalidArgument("{}: not a regular file", what);
  std::string text;
  char buffer[65536];
  for (size_t n; (n = std::fread(buffer, 1, sizeof(buffer), file.get())) > 0;) {
    text.append(buffer, n);
    if (text.size() > most) {
      return InvalidArgument("{}: larger than {} bytes, allowed: at most these", what, most);
    }
  }
  if (std::ferror(file.get()) != 0) return unreadable();
  return text;
}

}  // namespace quantd

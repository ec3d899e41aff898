// By stdio, which says why it failed; a stream of the standard library would take a folder for an
// empty file.
#include "server/read_input.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

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

}  // namespace quantd

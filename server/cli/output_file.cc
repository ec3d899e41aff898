#include "server/cli/output_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "kernels/status.h"

namespace quantd {
namespace {

absl::Status CannotWriteFile(const std::string& flag, const std::string& path) {
  return Unavailable("{} {}: cannot be written: {}", flag, path, std::strerror(errno));
}

std::string Unfinished(const std::string& path) { return path + ".tmp"; }

}  // namespace

absl::Status CheckOutputFile(const std::string& flag, const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error) && !std::filesystem::is_regular_file(path, error)) {
    return InvalidArgument("{} {}: not a regular file", flag, path);
  }
  if (!std::ofstream(Unfinished(path))) return CannotWriteFile(flag, path);
  std::filesystem::remove(Unfinished(path), error);
  return absl::OkStatus();
}

absl::Status WriteOutputFile(const std::string& flag, const std::string& path,
                             const std::string& text) {
  std::ofstream file(Unfinished(path), std::ios::binary);
  file << text;
  file.close();
  if (!file || std::rename(Unfinished(path).c_str(), path.c_str()) != 0) {
    return CannotWriteFile(flag, path);
  }
  return absl::OkStatus();
}

}  // namespace quantd

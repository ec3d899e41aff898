#include "engine/text/model_file.h"

#include <fstream>

#include "kernels/status.h"

namespace quantd {

absl::StatusOr<std::string> ReadModelFile(const std::filesystem::path& path, uintmax_t most) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error);
  if (!std::filesystem::exists(kind)) return NotFound("{}: no such file", path.string());
  if (!std::filesystem::is_regular_file(kind))
    return DataLoss("{}: not a regular file", path.string());
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) return DataLoss("{}: {}", path.string(), error.message());
  if (size > most) {
    return DataLoss("{}: {} bytes, at most {} are read", path.string(), size, most);
  }
  std::string text(size, '\0');
  std::ifstream file(path, std::ios::binary);
  if (!file.read(text.data(), static_cast<std::streamsize>(size))) {
    return DataLoss("{}: cannot read {} bytes", path.string(), size);
  }
  return text;
}

}  // namespace quantd

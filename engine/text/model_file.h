// Small files of a model folder, whole: tokenizer.json, tokenizer_config.json, chat templates.
// Stateless.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "absl/status/statusor.h"

namespace quantd {

/// The bytes of a file of at most `most` bytes. NOT_FOUND where there is none; DATA_LOSS for what
/// is no regular file, is larger, or cannot be read. The message names the path.
absl::StatusOr<std::string> ReadModelFile(const std::filesystem::path& path, uintmax_t most);

}  // namespace quantd

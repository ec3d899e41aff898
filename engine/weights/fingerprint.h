// ModelFingerprint: a name for a model folder's weights and config, without reading all of them.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "engine/weights/safetensors.h"

namespace quantd {

/// 16 hex digits over every tensor's name, dtype, shape and 256 of its bytes, spread evenly: equal
/// for copies, and almost surely another one for other weights. Reads a few pages a tensor.
std::string CheckpointFingerprint(const Checkpoint& checkpoint);

/// That of `dir`'s checkpoint and of its config.json, but for what in it says who wrote it. Errors
/// of Checkpoint::Open and ReadTextFile.
absl::StatusOr<std::string> ModelFingerprint(const std::filesystem::path& dir);

}  // namespace quantd

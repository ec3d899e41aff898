// CheckpointFingerprint: a name for the contents of a checkpoint, without reading all of them.
#pragma once

#include <filesystem>
#include <string>

#include "absl/status/statusor.h"
#include "engine/weights/safetensors.h"

namespace quantd {

/// 16 hex digits over every tensor's name, dtype, shape and a few hundred of its bytes: equal for
/// copies, different for a fine-tune of the same shape. Reads a few pages a tensor.
std::string CheckpointFingerprint(const Checkpoint& checkpoint);

}  // namespace quantd

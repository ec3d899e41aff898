// CheckDevice: what a backend has no kernels for, and what it has only slow ones for, before
// anything is loaded.
//
// An account of its own, as packed_bytes.h: packed_weight.cc, int8_rescale.cu, attention.cu and
// linear_mma.cu of kernels/cuda say what they take. ref and cpu take every format and head size.
// Pure functions.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/models/model_source.h"
#include "engine/plan/memory_plan.h"

namespace quantd {

/// UNIMPLEMENTED, with every weight of `load` that `device` has no kernels for.
absl::Status CheckDevice(const LoadPlan& load, const PlanDevice& device);

/// What runs without the device's tensor cores, and what to do about it: "what; fix", each once.
std::vector<std::string> SlowPaths(const DecoderSpec& spec, const LoadPlan& load,
                                   const PlanDevice& device);

}  // namespace quantd

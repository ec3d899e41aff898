// WorkspaceBytes: scratch that ops take beside their inputs and outputs, at the largest step.
//
// An account of its own, as packed_bytes.h: linear.cc and cpu_backend.cc of kernels/cpu, and
// cuda_linear.cc, attention.cu and cuda_sampler.cc of kernels/cuda, say what they allocate. Pure
// function.
#pragma once

#include <cstdint>

#include "engine/models/decoder_spec.h"
#include "engine/plan/memory_plan.h"

namespace quantd {

int64_t WorkspaceBytes(const DecoderSpec& spec, const WeightsPlan& weights, DType compute,
                       const PlanLimits& limits, const PlanDevice& device);

}  // namespace quantd

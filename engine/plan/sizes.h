// Small arithmetic that the planner's files share.
#pragma once

#include <cstdint>

#include "kernels/ceil_div.h"
#include "kernels/tensor.h"

namespace quantd::plan {

/// The least multiple of `step` that is not below `value`.
constexpr int64_t RoundUp(int64_t value, int64_t step) { return CeilDiv(value, step) * step; }

/// Bytes of an element.
inline int64_t Size(DType type) { return static_cast<int64_t>(SizeOf(type)); }

}  // namespace quantd::plan

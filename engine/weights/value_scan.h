// One pass over a stored tensor's values: is every one finite, and how large is the largest. Pure
// functions.
#pragma once

#include <optional>
#include <span>

#include "absl/status/status.h"
#include "kernels/status.h"
#include "kernels/tensor.h"

namespace quantd {

/// Row-major index of the first NaN or infinity in `w` (f32, f16 or bf16); nullopt when there is
/// none.
std::optional<int64_t> FindNonFinite(const TensorView& w);

/// INVALID_ARGUMENT when rounding `w` to f16 would make an infinity.
absl::Status CheckFitsF16(const TensorView& w);

}  // namespace quantd

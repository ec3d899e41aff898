// PackedBytesOf: what a weight takes in the layout of a backend, by arithmetic alone.
//
// The planner's own account of the layouts that kernels/{ref,cpu,cuda}/packed_weight.h describe:
// it is compared with what the backends book, so the two share no code. Pure function.
#pragma once

#include <cstdint>

#include "kernels/quant/format.h"

namespace quantd {

/// Which backend's layout, rounding and workspace. The emulated one has cuda's layout.
enum class PlanBackend : uint8_t { kRef, kCpu, kCuda };

struct PackedBytes {
  int64_t codes = 0;   // and plain values
  int64_t scales = 0;  // zero points, nested statistics, column order, row sums; not `columns`
};

/// Of the rows of one module, [n, k]: fused modules keep scales and padding of their own.
PackedBytes PackedBytesOf(PlanBackend backend, const QuantFormat& format, int64_t n, int64_t k);

/// The order of columns, which fused modules share; 0 unless the format is reordered.
int64_t ColumnOrderBytes(const QuantFormat& format, int64_t k);

}  // namespace quantd

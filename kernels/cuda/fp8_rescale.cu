// The second half of a Linear whose codes of e4m3 cuBLASLt multiplied: scales, bias and rounding.
//
// Idea: one pass over the sums; the scale and bias of an output are read once a block. Mapping: a
// block 256 outputs x 8 rows, a thread an output. Bytes: 4 in and 2 or 4 out an element. Bound: L2
// or DRAM.
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 8;  // of a block

__global__ void __launch_bounds__(kThreads)
    Fp8RescaleKernel(WeightView w, const float* scales, const float* sums, int64_t sums_stride,
                     const float* bias, Matrix y) {
  const int column = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (column >= w.n) return;
  const WeightSegment segment = SegmentOfRow(w, column);
  const float scale = LoadRowScale(w.scale, segment.scales, column - segment.first_row);
  const float added = bias == nullptr ? 0.0f : bias[column];
  const int first = static_cast<int>(blockIdx.y) * kRows;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int64_t row = first + i;
    if (row >= y.rows) return;
    float v = __fmul_rn(__fmul_rn(sums[row * sums_stride + column], scales[row]), scale);
    if (bias != nullptr) v = __fadd_rn(v, added);
    StoreFloat(y.type, y.data, row * y.stride + column, v);
  }
}

}  // namespace

void RescaleFp8(const WeightView& w, const float* scales, const float* sums, int64_t sums_stride,
                const float* bias, Matrix y, Stream stream) {
  if (y.rows == 0) return;
  const dim3 grid(static_cast<unsigned>(CeilDiv(w.n, kThreads)),
                  static_cast<unsigned>(CeilDiv(y.rows, kRows)));
  LAUNCH((Fp8RescaleKernel), grid, kThreads, 0, stream, w, scales, sums, sums_stride, bias, y);
}

}  // namespace quantd::QUANTD_CUDA_NS

// What the host and the kernels of LinearMma agree on: the split of k, and the kernel's argument.
#pragma once

#include <cstdint>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/weight_view.h"

namespace quantd::QUANTD_CUDA_NS {

inline constexpr int kMmaGroupTiles = 8;  // row tiles of a block
inline constexpr int kMmaSplitUnit = 4;   // a split is a multiple of so many k tiles

/// How k is divided. Decides the order of additions, so it must never depend on the tokens.
struct MmaPlan {
  int32_t k_tiles = 0;
  int32_t row_groups = 0;
  int32_t tiles_per_split = 0;
  int32_t splits = 0;
};
MmaPlan MmaPlanOf(const WeightView& w, int multiprocessors);

struct LinearMmaArgs {
  WeightView w;
  MmaPlan plan;
  const void* x = nullptr;
  int64_t x_stride = 0;
  int32_t m = 0;
  bool x_aligned = false;  // rows are 16-byte aligned
  bool whole_k = false;    // a block walks all splits (64 tokens only), else gridDim.y blocks do
  FloatType y_type = FloatType::kBF16;
  void* y = nullptr;
  int64_t y_stride = 0;
  const float* bias = nullptr;
  float* partials = nullptr;    // [splits, m, row_groups * 128] unless whole_k or one split
  int32_t* counters = nullptr;  // [token groups, row_groups]
  int32_t scale_shift = 0;      // log2 of the bytes of a staged scale (or pair)
  float zero_center = 0.0f;     // of pairs: `values` are this much less than the codec's
  float values[16] = {};        // of the 4-bit codes
};

/// Launches the kernel for `token_tiles` (1, 2, 4, 8) tiles of eight tokens a block. `x` is the
/// type of the activations, 16-bit.
void LaunchLinearMmaTable(const LinearMmaArgs& args, FloatType x, int token_tiles, Stream stream);
void LaunchLinearMmaZeros(const LinearMmaArgs& args, FloatType x, int token_tiles, Stream stream);
void LaunchLinearMmaPlain(const LinearMmaArgs& args, FloatType x, int token_tiles, Stream stream);

}  // namespace quantd::QUANTD_CUDA_NS

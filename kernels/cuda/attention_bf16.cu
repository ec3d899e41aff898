// Paged attention on tensor cores for bf16: see attention_block.cuh for idea, mapping, bytes and
// bound.
#include "kernels/cuda/attention_mma.cuh"

namespace quantd::QUANTD_CUDA_NS {

void AttentionMmaBF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                      Stream stream) {
  DispatchAttentionMma<BF16, BF16>(a, head_dim, layout, grid_x, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS

// Paged attention on tensor cores for f16: see attention_block.cuh for idea, mapping, bytes and
// bound.
#include "kernels/cuda/attention_mma.cuh"

namespace quantd::QUANTD_CUDA_NS {

void AttentionMmaF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                     Stream stream) {
  DispatchAttentionMma<F16, F16>(a, head_dim, layout, grid_x, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS

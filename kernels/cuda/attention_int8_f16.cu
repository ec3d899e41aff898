// Paged attention on tensor cores for q of f16 over an int8 cache: see attention_block.cuh for
// idea, mapping, bytes and bound.
#include "kernels/cuda/attention_mma.cuh"

namespace quantd::QUANTD_CUDA_NS {

void AttentionInt8MmaF16(const AttentionArgs& a, int head_dim, AttentionLayout layout, int grid_x,
                         Stream stream) {
  DispatchAttentionMma<F16, int8_t>(a, head_dim, layout, grid_x, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS

// LinearMma for bf16 and f16 weights: the instantiations of linear_mma.cuh, where idea, mapping,
// bytes and bound are. Weights and activations have the same type.
#include "kernels/cuda/linear_mma.cuh"

namespace quantd::QUANTD_CUDA_NS {

void LaunchLinearMmaPlain(const LinearMmaArgs& args, FloatType x, int token_tiles, Stream stream) {
  if (x == FloatType::kBF16)
    return LaunchLinearMmaOf<false, false, BF16>(args, token_tiles, stream);
  LaunchLinearMmaOf<false, false, F16>(args, token_tiles, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS

// LinearMma for 4-bit codes: the instantiations of linear_mma.cuh, where idea, mapping, bytes and
// bound are. One kernel for every type of scales and every table: the values are an argument.
#include "kernels/cuda/linear_mma.cuh"

namespace quantd::QUANTD_CUDA_NS {

void LaunchLinearMmaTable(const LinearMmaArgs& args, FloatType x, int token_tiles, Stream stream) {
  if (x == FloatType::kBF16) return LaunchLinearMmaOf<true, false, BF16>(args, token_tiles, stream);
  LaunchLinearMmaOf<true, false, F16>(args, token_tiles, stream);
}

}  // namespace quantd::QUANTD_CUDA_NS

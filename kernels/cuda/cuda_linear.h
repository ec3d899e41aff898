// CudaLinear: runs a Linear the way PlanLinear says, with the scratch it needs.
#pragma once

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/linear_plan.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/scratch.h"
#include "kernels/quant/format.h"

namespace quantd::QUANTD_CUDA_NS {

class CudaLinear {
 public:
  /// `cublaslt` may be null. `slab_bytes`: of a dequantized slab, of which there are two.
  CudaLinear(DeviceContext& context, Scratch& scratch, CublasLt* cublaslt, Determinism determinism,
             size_t slab_bytes);
  ~CudaLinear();
  CudaLinear(const CudaLinear&) = delete;
  CudaLinear& operator=(const CudaLinear&) = delete;

  /// y = x * W^T + bias; at least one row. An op that lacks memory is left out and noted.
  void Run(const WeightView& w, const ActivationQuant& activation, Matrix x, const float* bias,
           Matrix y);

 private:
  /// x becomes what its codes stand for, in the weight's columns, in scratch; false: no room.
  bool Prepare(const WeightView& w, const ActivationQuant& activation, Matrix& x);
  void RunMma(const WeightView& w, Matrix x, const float* bias, Matrix y);
  void RunGemm(const WeightView& w, Matrix x, const float* bias, Matrix y);
  void RunDequantizeGemm(const WeightView& w, Matrix x, const float* bias, Matrix y);
  void RunInt8(const WeightView& w, const ActivationQuant& activation, Matrix x, const float* bias,
               Matrix y, bool gemm);
  void Int8Gemm(const WeightView& w, const Int8Activations& a, Matrix x, const float* bias,
                Matrix y, std::byte* sums, int32_t chunk_rows, void* workspace);

  void RunFp8Gemm(const WeightView& w, const ActivationQuant& activation, Matrix x,
                  const float* bias, Matrix y);

  DeviceContext& context_;
  Scratch& scratch_;
  Scratch inputs_;  // what Prepare makes, while an op works in scratch_
  CublasLt* const cublaslt_;
  const Determinism determinism_;
  const size_t slab_bytes_;
  Event free_[2];    // the product with a slab's values is done
  Event filled_[2];  // a slab holds its values
  Event begun_;
};

}  // namespace quantd::QUANTD_CUDA_NS

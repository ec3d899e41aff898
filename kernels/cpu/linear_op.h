// LinearOp: Backend::Linear of the cpu backend: lays out the activations, then splits the panels
// over the threads. Owns the workspace for both. Engine thread only.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/memory_account.h"

namespace quantd {

class LinearOp {
 public:
  LinearOp(CpuIsa isa, ThreadPool& pool, MemoryAccount& account);

  /// y = x * W^T + bias. Allocates only when a call needs more workspace than every one before it.
  void Run(const CpuPackedWeight& w, const ActivationQuant& activation, const TensorView& x,
           const float* bias, const TensorView& y);

 private:
  LinearPath PathFor(const CpuPackedWeight& w, const ActivationQuant& activation, DType x) const;
  XLayout LayoutFor(LinearPath path) const;
  /// At least `bytes` of workspace, contents undefined.
  uint8_t* Workspace(Buffer& buffer, int64_t bytes);
  void PackFloatTiles(LinearCall& call, const TensorView& x, XLayout layout);
  void PackInt8Tiles(LinearCall& call, const TensorView& x, const ActivationQuant& activation);

  const LinearKernels& kernels_;
  const QuantizeKernels& quantize_;
  ThreadPool& pool_;
  MemoryAccount& account_;
  Buffer tiles_;  // packed activations
  Buffer int8_;   // LLM.int8's scales, masks and rows
};

}  // namespace quantd

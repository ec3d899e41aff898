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
  /// x with its codes' values in place of its own if `replace`, and its columns in the weight's
  /// order; x itself where neither changes it.
  TensorView Prepare(const CpuPackedWeight& w, const ActivationQuant& activation, bool replace,
                     const TensorView& x);
  void PackFloatTiles(LinearCall& call, const TensorView& x, XLayout layout);
  void SumPieces(LinearCall& call, const TensorView& x);
  void PackInt8Tiles(LinearCall& call, const TensorView& x, const ActivationQuant& activation);

  const LinearKernels& kernels_;
  const QuantizeKernels& quantize_;
  const ReplaceKernels& replace_;
  ThreadPool& pool_;
  MemoryAccount& account_;
  Buffer tiles_;  // packed activations
  Buffer int8_;   // scales, masks and rows of int8 activations
  Buffer input_;  // replaced and reordered activations
  Buffer sums_;   // of their columns
};

}  // namespace quantd

// Row-level kernels of the ops beside Linear, written with Highway, one table an instruction set.
// Internal to kernels/cpu; pure functions of their arguments, called from any thread.
#pragma once

#include <cstdint>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_backend.h"

namespace quantd {

struct NormKernels {
  /// Row `row` of RmsNorm.
  void (*rms_norm)(const TensorView& x, int64_t row, const float* weight, float eps,
                   const TensorView& out);
  /// Row `row` of residual += x, rounded.
  void (*add)(const TensorView& residual, const TensorView& x, int64_t row);
};
const NormKernels& NormKernelsFor(CpuIsa isa);

struct ElementwiseKernels {
  /// Row `row` of out = activation(gate) * up.
  void (*gated)(const TensorView& gate_up, int64_t row, Activation activation,
                const TensorView& out);
  /// x[i] = cap * tanh(x[i] / cap).
  void (*soft_cap)(float* x, int64_t count, float cap);
  /// out[i] = scale * values[i], rounded to `dtype`. `values` is written over.
  void (*from_floats)(float* values, int64_t count, float scale, DType dtype, void* out);
  /// Lowest index of the largest value, NaN as -inf, +inf as the largest float; 0 when all are
  /// -inf: SampleRow's greedy choice.
  int32_t (*arg_max)(const float* values, int64_t count);
};
const ElementwiseKernels& ElementwiseKernelsFor(CpuIsa isa);

/// The activations of LLM.int8 (Dettmers et al., 2022), with bitsandbytes' arithmetic.
struct QuantizeKernels {
  /// The row through f16, as f32: `out` [padded_k], zeros behind k.
  void (*through_f16)(const TensorView& x, int64_t row, int64_t padded_k, float* out);
  /// Sets bit c of `mask` where |x[c]| >= threshold or x[c] is NaN, c < count. Returns whether any.
  bool (*find_outliers)(const float* x, int64_t count, float threshold, uint64_t* mask);
  /// q[c] = rint(x[c] * (127 / scale)), scale the largest magnitude below `threshold` (of all, if
  /// 0) and the result; 0 where that is no int8, where x is an outlier, and in the columns of
  /// `zeroed` (may be null). count is a multiple of 8.
  float (*quantize)(const float* x, int64_t count, float threshold, const uint64_t* zeroed,
                    int8_t* q);
};
const QuantizeKernels& QuantizeKernelsFor(CpuIsa isa);

/// The activations of the kinds that ReplacesInput is true of, with the codes of
/// kernels/quant/activation.h.
struct ReplaceKernels {
  /// What the codes of row `row` of x stand for, in x's dtype: `out` [k], none of x's own memory.
  void (*replace_row)(const ActivationQuant& q, const TensorView& x, int64_t row, void* out);
  /// The codes themselves of an int8 kind, [k]. The scale is NaN when a code is none.
  ActivationScale (*codes)(const ActivationQuant& q, const TensorView& x, int64_t row,
                           int8_t* codes);
};
const ReplaceKernels& ReplaceKernelsFor(CpuIsa isa);

struct RopeKernels {
  /// Row `row` of RopeAndStoreKv.
  void (*rope_and_store)(const TensorView& q, const TensorView& k, const TensorView& v, int64_t row,
                         const float* cos_sin, const AttentionSpec& spec,
                         const AttentionBatch& batch, const KvLayer& cache);
};
const RopeKernels& RopeKernelsFor(CpuIsa isa);

struct AttentionKernels {
  /// Floats of scratch that `attend` wants, for any row.
  int64_t (*scratch_floats)(const AttentionSpec& spec);
  /// The heads of row `row` that share `kv_head`.
  void (*attend)(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
                 const KvLayer& cache, int64_t row, int64_t kv_head, const TensorView& out,
                 float* scratch);
};
const AttentionKernels& AttentionKernelsFor(CpuIsa isa);

}  // namespace quantd

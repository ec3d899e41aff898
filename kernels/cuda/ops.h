// Host functions that launch kernels: the seam between cuda_backend.cc, which knows Backend,
// buffers and streams, and the kernel files, which know grids. Plain data in, nothing returned: a
// failed launch shows in runtime.h's FirstError(). Pointers are device memory. Shapes were checked
// by op_checks.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/target.h"
#include "kernels/cuda/weight_view.h"
#include "kernels/quant/activation.h"

namespace quantd::QUANTD_CUDA_NS {

/// Element types of activations; names as DType's.
enum class FloatType : uint8_t { kF32, kF16, kBF16 };

/// A matrix with `stride` elements from row to row.
struct Matrix {
  FloatType type = FloatType::kBF16;
  void* data = nullptr;
  int32_t rows = 0;
  int32_t cols = 0;
  int64_t stride = 0;
};

struct AttentionShape {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float scale = 0.0f;
  int32_t window = 0;      // 0: none
  float softcap = 0.0f;    // 0: none
  int32_t rotary_dim = 0;  // 0: head_dim
};

/// AttentionBatch of backend.h.
struct AttentionArrays {
  const int32_t* positions = nullptr;     // [rows]
  const int32_t* slots = nullptr;         // [rows]
  const int32_t* seq_of_row = nullptr;    // [rows]; the rows of a sequence are adjacent, ascending
  const int32_t* block_tables = nullptr;  // [num_seqs, max_blocks]
  int32_t num_seqs = 0;
  int32_t max_blocks = 0;
};

/// KvLayer of backend.h.
struct KvArrays {
  FloatType type = FloatType::kBF16;  // of k and v when there are no scales
  void* k = nullptr;
  void* v = nullptr;
  int32_t num_blocks = 0;
  int32_t block_size = 0;
  float* k_scales = nullptr;  // [num_blocks, num_kv_heads, block_size]: k and v are int8 codes
  float* v_scales = nullptr;
};

/// Scratch of one op. Kernels that split sums keep their arrival counters in `counters`, which are
/// zero before and after every launch.
struct Workspace {
  void* data = nullptr;  // 256-byte aligned
  size_t bytes = 0;
  int32_t* counters = nullptr;
  int32_t num_counters = 0;
};

/// What a launcher may use of the device; its results must not depend on anything else of it.
struct DeviceLimits {
  int multiprocessors = 0;
  int major = 0;  // compute capability
  int minor = 0;
  int64_t shared_memory = 0;  // bytes a block may ask for
};

// ---- elementwise.cu, norm.cu, rope.cu ----
/// `table` plain row-major [vocab, hidden].
void Embed(const WeightView& table, const int32_t* ids, float scale, Matrix out, Stream stream);
void RmsNorm(Matrix x, const float* weight, float eps, Matrix out, Stream stream);
void AddRmsNorm(Matrix residual, Matrix x, const float* weight, float eps, Matrix out,
                Stream stream);
/// `gelu_tanh`: Activation::kGeluTanh of backend.h, else kSilu.
void GatedActivation(Matrix gate_up, bool gelu_tanh, Matrix out, Stream stream);
/// x f32, in place.
void SoftCap(Matrix x, float cap, Stream stream);
/// q and k in place, a head of `shape` at a time.
void NormHeads(Matrix q, Matrix k, const float* q_weight, const float* k_weight, float eps,
               const AttentionShape& shape, Stream stream);
void GatherRows(Matrix x, const int32_t* rows, Matrix out, Stream stream);
/// out[:, c] = x[:, columns[c]]; x and out of one type.
void GatherColumns(Matrix x, const int32_t* columns, Matrix out, Stream stream);
void FeedBackTokens(int32_t* ids, const int32_t* source, const int32_t* sampled, int32_t count,
                    Stream stream);
/// y += bias, y rounded again.
void AddBias(Matrix y, const float* bias, Stream stream);
void RopeAndStoreKv(Matrix q, Matrix k, Matrix v, const float* cos_sin, const AttentionShape& shape,
                    const AttentionArrays& batch, const KvArrays& cache, Stream stream);

// ---- attention.cu ----
/// Workspace and counters an Attention call of this shape needs.
size_t AttentionWorkspaceBytes(int32_t rows, const AttentionShape& shape, int32_t max_blocks,
                               int32_t block_size);
int32_t AttentionCounters(int32_t rows, const AttentionShape& shape);
/// Causal attention. A row's bits depend on its own position, table and K, V, and on the device.
void Attention(Matrix q, const AttentionShape& shape, const AttentionArrays& batch,
               const KvArrays& cache, Matrix out, const Workspace& workspace,
               const DeviceLimits& device, Stream stream);

// ---- linear_generic.cu: every format, every type, no tensor cores; x in the weight's columns ----
/// `round_weights`: each is rounded to x's type before it is multiplied.
void LinearGeneric(const WeightView& w, Matrix x, const float* bias, Matrix y, bool round_weights,
                   Stream stream);

// ---- linear_mma*.cu: 4-bit in tiled blocks and 16-bit plain weights, 16-bit x, any m ----
/// True when LinearMma takes this weight and these types.
bool HasLinearMma(const WeightView& w, FloatType x);
size_t LinearMmaWorkspaceBytes(const WeightView& w, int32_t m, const DeviceLimits& device);
int32_t LinearMmaCounters(const WeightView& w, int32_t m, const DeviceLimits& device);
/// The order of additions along k is a function of (format, n, k, device), never of m.
void LinearMma(const WeightView& w, Matrix x, const float* bias, Matrix y,
               const Workspace& workspace, const DeviceLimits& device, Stream stream);

// ---- linear_bytes.cu: codes of one byte, 16-bit x, few rows ----
/// True when LinearBytes takes this weight and this x.
bool HasLinearBytes(const WeightView& w, FloatType x);
/// The order of additions along k is a function of k, never of m.
void LinearBytes(const WeightView& w, Matrix x, const float* bias, Matrix y, Stream stream);

// ---- dequantize.cu ----
/// Rows [first_row, first_row + out.rows) of a quantized weight, row-major, columns as stored:
/// QuantizedMatrix::Dequantize rounded once to out's type.
void Dequantize(const WeightView& w, int32_t first_row, Matrix out, Stream stream);

// ---- activations.cu: all kinds that ReplacesInput names, bit-identical to ref ----
/// out = what the codes of x stand for, rounded to their type; x and out of one type.
void ReplaceInput(const ActivationQuant& q, Matrix x, Matrix out, Stream stream);
/// Codes of x, int8 or e4m3 by its kind, one scale a row, zero points zero. A row with a NaN shows
/// it: in its codes, or, where they are integers, in its scale.
struct TokenCodes {
  uint8_t* codes = nullptr;   // [m, padded_k], zero in the padding
  float* scales = nullptr;    // [m]
  int32_t* counts = nullptr;  // [m] or null: set to zero (Int8Activations)
  int32_t padded_k = 0;       // a multiple of 8
};
void QuantizeTokens(const ActivationQuant& q, Matrix x, const TokenCodes& out, Stream stream);

// ---- int8*.cu: products of int8 with int8 ----
/// Activations of int8, in workspace. An int32 sum times scales[row] times the weight's stored
/// scale, divided by `divisor`, is an element of y.
struct Int8Activations {
  int8_t* codes = nullptr;  // [m, padded_k] zero in outlier columns and padding
  float* scales = nullptr;  // [m] LLM.int8: the largest magnitude below the threshold
  float divisor = 127.0f * 127.0f;
  int32_t padded_k = 0;  // k rounded up to 64
  // Outliers of a row: columns ascending; at most kMaxOutliers are listed, `count` may be more, and
  // the consumer then goes through the row's mask.
  int32_t* counts = nullptr;   // [m]
  int32_t* columns = nullptr;  // [m, kMaxOutliers]
  uint32_t* masks =
      nullptr;  // [m, padded_k / 32] bit c % 32 of word c / 32: column c is an outlier
  uint32_t* call_mask =
      nullptr;  // [padded_k / 32] outlier columns of the call (OutlierScope::kCall)
  static constexpr int kMaxOutliers = 256;
};
size_t Int8ActivationBytes(int32_t m, int32_t k);
/// The Int8Activations that lie at `data`.
Int8Activations Int8ActivationsAt(void* data, int32_t m, int32_t k);
/// threshold 0: no outliers. `per_call`: outlier columns are found over all rows.
void QuantizeInt8(Matrix x, float threshold, bool per_call, const Int8Activations& out,
                  Stream stream);
/// y from int8 mma plus the outliers, any m; order of additions independent of m.
void LinearInt8Mma(const WeightView& w, Matrix x, const Int8Activations& a, const float* bias,
                   Matrix y, const Workspace& workspace, const DeviceLimits& device, Stream stream);
size_t LinearInt8WorkspaceBytes(const WeightView& w, int32_t m, const DeviceLimits& device);
int32_t LinearInt8Counters(const WeightView& w, int32_t m, const DeviceLimits& device);
/// y from the int32 sums [m, n] (row stride sums_stride) of cuBLASLt: rescale, outliers and bias in
/// one pass.
void RescaleInt8(const WeightView& w, Matrix x, const Int8Activations& a, const int32_t* sums,
                 int64_t sums_stride, const float* bias, Matrix y, Stream stream);

// ---- fp8_rescale.cu ----
/// y from the f32 sums [m, n] (row stride sums_stride) of the products of codes: times the scale of
/// the row of x, times that of the weight's row, plus bias, rounded once.
void RescaleFp8(const WeightView& w, const float* scales, const float* sums, int64_t sums_stride,
                const float* bias, Matrix y, Stream stream);

// ---- sampling.cu ----
/// SampleParams of kernels/sampling.h as the device reads them.
struct DeviceSampleParams {
  float temperature = 1.0f;
  float top_p = 1.0f;
  float min_p = 0.0f;
  float uniform = 0.0f;  // UniformOf(seed, sequence_index, position), made by the host
  int32_t top_k = 0;
  int32_t num_logprobs = 0;
  float repetition_penalty = 1.0f;
  int32_t forced_id = -1;
  // Where the row's lists begin and how long they are; no mask: first_mask is -1.
  int32_t first_banned = 0;
  int32_t num_banned = 0;
  int32_t first_mask = -1;
  int32_t first_edit = 0;
  int32_t num_edits = 0;
};
/// LogitEdit, with room for the logit it replaces.
struct DeviceLogitEdit {
  int32_t token_id = 0;
  float bias = 0.0f;
  float penalty = 0.0f;
  int32_t repeated = 0;
  float original = 0.0f;
};
/// The lists of all rows.
struct DeviceSampleLists {
  const int32_t* banned_ids = nullptr;
  const uint32_t* masks = nullptr;  // ceil(vocab / 32) words a row that has one
  DeviceLogitEdit* edits = nullptr;
};
/// One row's result: token, its logprob, soundness; the top list follows in its own array.
struct DeviceSampleResult {
  int32_t token_id = 0;
  float logprob = 0.0f;
  int32_t finite = 1;
  int32_t num_top = 0;
};
inline constexpr int kMaxTopLogprobs = 64;
struct DeviceTokenLogprob {
  int32_t token_id = 0;
  float logprob = 0.0f;
};
/// logits f32 [rows, vocab]; `results` [rows], `top` [rows, kMaxTopLogprobs], `sampled` [rows].
/// Same token as SampleRow unless the draw falls within rounding of a boundary. Restores the
/// logits that it edits.
void Sample(Matrix logits, const DeviceSampleParams* params, const DeviceSampleLists& lists,
            DeviceSampleResult* results, DeviceTokenLogprob* top, int32_t* sampled, Stream stream);

// ---- quantize.cu: on load, byte-identical to kernels/quant/quantize.h ----
/// values [rows, k] row-major of `values.type` -> codes and f32 scales of segment `segment` of w.
void QuantizeBlock4(const WeightView& w, int segment, Matrix values, Stream stream);
/// values -> row-major int8 codes and SCB of the segment.
void QuantizeInt8Rows(const WeightView& w, int segment, Matrix values, Stream stream);

}  // namespace quantd::QUANTD_CUDA_NS

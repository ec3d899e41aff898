// Backend: executes ops. The narrow waist between models (engine/models) and numerics (kernels/*).
//
// No model and no request in it: an op sees matrices, packed weights and the paged KV cache. `ref`
// is plain loops and the oracle of the tests, `cpu` the embedded default, `cuda` what quantd exists
// for.
//
// Threads: one backend belongs to one engine thread; only CreatePacked/PackRows may run on loader
// threads. Errors: ops return void. Shapes are the caller's duty and CHECKed; a device that fails
// reports it from Wait and Synchronize().
//
// Rounding: activations between ops are in the compute dtype (the dtype of the views); sums, norms,
// softmax, rope and logits are f32 inside an op and rounded once when stored. Results of a row do
// not depend on the other rows of a batch (except ActivationQuant::OutlierScope::kCall).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/quant/format.h"
#include "kernels/sampling.h"
#include "kernels/tensor.h"

namespace quantd {

/// Rows of a packed weight that came from one module: fused q,k,v keep their own offsets.
struct RowSegment {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  int64_t first_row = 0;
  int64_t rows = 0;
};

/// A weight in a backend's own layout. Immutable after its last PackRows.
class PackedWeight {
 public:
  virtual ~PackedWeight() = default;

  const QuantFormat& format() const { return format_; }
  int64_t n() const { return n_; }  // outputs, over all segments
  int64_t k() const { return k_; }  // inputs
  const std::vector<RowSegment>& segments() const { return segments_; }
  /// Resident bytes: codes, scales, padding and corrections.
  virtual int64_t bytes() const = 0;

 protected:
  PackedWeight(QuantFormat format, int64_t k, std::vector<RowSegment> segments)
      : format_(format), k_(k), segments_(std::move(segments)) {
    for (const RowSegment& s : segments_) n_ += s.rows;
  }

 private:
  QuantFormat format_;
  int64_t n_ = 0;
  int64_t k_ = 0;
  std::vector<RowSegment> segments_;
};

/// The paged KV cache of one layer. Both halves are [num_blocks, num_kv_heads, block_size,
/// head_dim] of `dtype`: a float type, or int8 as kernels/quant/kv_codec.h defines it, with a scale
/// for each row of head_dim. Block 0 is reserved: padding writes go there.
struct KvLayer {
  DType dtype = DType::kBF16;
  void* k = nullptr;
  void* v = nullptr;
  int32_t num_blocks = 0;
  int32_t block_size = 0;  // tokens in a block
  int32_t num_kv_heads = 0;
  int32_t head_dim = 0;
  float* k_scales = nullptr;  // [num_blocks, num_kv_heads, block_size], int8 only
  float* v_scales = nullptr;

  /// Row of the cache that (block, head, slot in block) is: the place of its scales.
  int64_t Row(int64_t block, int64_t head, int64_t slot) const {
    return (block * num_kv_heads + head) * block_size + slot;
  }
  /// Element offset of (block, head, slot in block, 0).
  int64_t Offset(int64_t block, int64_t head, int64_t slot) const {
    return Row(block, head, slot) * head_dim;
  }
};

/// Where the rows of a step live. All arrays are in backend memory; the counts are host values.
struct AttentionBatch {
  std::span<const int32_t> positions;   // [rows] position of each row in its sequence
  std::span<const int32_t> slots;       // [rows] block * block_size + offset this row's K, V go to
  std::span<const int32_t> seq_of_row;  // [rows] sequence (0..num_seqs-1) of each row
  std::span<const int32_t> block_tables;  // [num_seqs, max_blocks] block ids, in order
  int32_t num_seqs = 0;
  int32_t max_blocks = 0;
};

struct AttentionSpec {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_heads
  int32_t head_dim = 0;
  float scale = 0.0f;      // 1 / sqrt(head_dim), usually
  int32_t window = 0;      // keys a row sees, its own the last of them; 0: all up to its own
  float softcap = 0.0f;    // a score s becomes softcap * tanh(s / softcap); 0: it stays
  int32_t rotary_dim = 0;  // elements at the head's beginning that rope rotates, even; 0: all

  int32_t rotated() const { return rotary_dim > 0 ? rotary_dim : head_dim; }
};

/// kGeluTanh: GELU by its tanh approximation (Hendrycks and Gimpel, 2016), x / (1 + exp(-2 u)) with
/// u = sqrt(2 / pi) (x + 0.044715 x^3).
enum class Activation : uint8_t { kSilu, kGeluTanh };

struct DeviceInfo {
  std::string description;   // "AMD EPYC, 2 threads, avx512bf16"
  std::string isa;           // instruction set or SM in use
  int64_t total_memory = 0;  // bytes
  int64_t free_memory = 0;   // bytes
};

/// What decides the shapes of a step's ops.
struct StepShape {
  int32_t rows = 0;
  int32_t seqs = 0;
  int32_t logits = 0;
  int32_t max_blocks = 0;
  bool decode_only = false;  // one row a sequence, and logits of every row

  auto operator<=>(const StepShape&) const = default;
};

/// Names a step for Backend::Run: steps of one owner and shape submit the same ops on the same
/// addresses. Owner 0: a step that does not come again.
struct StepKey {
  uint64_t owner = 0;
  StepShape shape;

  auto operator<=>(const StepKey&) const = default;
};

/// How steps were run, since the backend was made.
struct StepCounts {
  int64_t eager = 0;     // op by op
  int64_t captured = 0;  // made into graphs (and run)
  int64_t replayed = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string_view name() const = 0;  // "ref", "cpu", "cuda"
  virtual DeviceInfo info() const = 0;
  /// Bytes taken by component; thread-safe.
  MemoryAccount& memory() { return memory_; }
  const MemoryAccount& memory() const { return memory_; }

  // ---- memory and weights
  // -------------------------------------------------------------------------
  /// 64-byte aligned, zeroed. RESOURCE_EXHAUSTED naming component and bytes when there is no room.
  virtual absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component) = 0;
  virtual void Upload(const void* host, size_t bytes, void* device) = 0;
  virtual void Download(const void* device, size_t bytes, void* host) = 0;

  /// An empty packed weight of sum(segments.rows) x k; UNIMPLEMENTED when the format has no kernel
  /// here. Codes are booked to `component`, scales to kScales.
  virtual absl::StatusOr<std::unique_ptr<PackedWeight>> CreatePacked(
      const QuantFormat& format, int64_t k, std::vector<RowSegment> segments,
      MemoryComponent component) = 0;
  /// Fills segment `segment` from `matrix` (same format and k, n == segment.rows). Each once.
  virtual absl::Status PackRows(PackedWeight& weight, size_t segment,
                                const QuantizedMatrix& matrix) = 0;
  /// True when QuantizeRows takes weights of `format` from values of dtype `values`; for plain
  /// formats the two must be the same.
  virtual bool QuantizesRows(const QuantFormat& format, DType values) const {
    (void)format, (void)values;
    return false;
  }
  /// PackRows of what kernels/quant/quantize.h makes of `values` [rows, k] in host memory (f32, f16
  /// or bf16, finite, and within f16 for int8), to the byte; computed on the device.
  virtual absl::Status QuantizeRows(PackedWeight& weight, size_t segment,
                                    const TensorView& values) {
    (void)segment, (void)values;
    return absl::UnimplementedError("no quantization on load of " + weight.format().ToString());
  }

  // ---- ops
  // ----------------------------------------------------------------------------------------
  /// out[i] = scale * table row ids[i]. `table` is plain (not quantized), so a tied head shares its
  /// bytes.
  virtual void Embed(const PackedWeight& table, std::span<const int32_t> ids, float scale,
                     TensorView out) = 0;

  /// out = x / rms(x) * weight, rms over cols with `eps` added to the mean square. weight: f32
  /// [cols].
  virtual void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) = 0;

  /// residual += x (rounded to the compute dtype), then out = RmsNorm(residual).
  virtual void AddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                          TensorView out) = 0;

  /// y [m, n] = x [m, k] * W^T + bias. y is x's dtype, or f32 (logits). bias: f32 [n] or nullptr.
  virtual void Linear(const PackedWeight& w, const ActivationQuant& activation, TensorView x,
                      const float* bias, TensorView y) = 0;

  /// RmsNorm of every head of q [rows, heads * d] and of k [rows, kv_heads * d], in place.
  /// q_weight, k_weight: f32 [d].
  virtual void NormHeads(TensorView q, TensorView k, const float* q_weight, const float* k_weight,
                         float eps, const AttentionSpec& spec) = 0;

  /// Rotates q [rows, heads * d] in place and stores rotated k and v [rows, kv_heads * d] in the
  /// cache at batch.slots. With r = spec.rotated(), cos_sin: f32 [max_positions, r], the r/2
  /// cosines then the r/2 sines; elements of a head are paired (i, i + r/2) as Hugging Face does,
  /// those from r on stay.
  virtual void RopeAndStoreKv(TensorView q, TensorView k, TensorView v, const float* cos_sin,
                              const AttentionSpec& spec, const AttentionBatch& batch,
                              const KvLayer& cache) = 0;

  /// Causal attention of q [rows, heads * d] over the cache (this step's K, V included), f32
  /// softmax. Keys are folded in fixed tiles counted from position 0, so a row's result does not
  /// depend on chunking; tiles wholly before its window are passed over.
  virtual void Attention(TensorView q, const AttentionSpec& spec, const AttentionBatch& batch,
                         const KvLayer& cache, TensorView out) = 0;

  /// out [m, n] = act(gate_up[:, :n]) * gate_up[:, n:2n].
  virtual void GatedActivation(TensorView gate_up, Activation activation, TensorView out) = 0;

  /// x = cap * tanh(x / cap), in place. x: f32 logits; cap above 0.
  virtual void SoftCap(TensorView x, float cap) = 0;

  /// out[i] = x[rows[i]].
  virtual void GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) = 0;

  /// For every i with source[i] >= 0: ids[i] = sampled[source[i]]. Lets a step start before the
  /// host has seen the tokens of the step before.
  virtual void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                              std::span<const int32_t> sampled) = 0;

  /// Draws one token a row of logits [rows, vocab] f32 by kernels/sampling.h; `sampled` [rows] is
  /// backend memory for FeedBackTokens, `results` [rows] is host memory, valid after Wait or
  /// Synchronize(). `logits` are changed on the way, and as before at the end.
  virtual void Sample(TensorView logits, std::span<const SampleParams> params,
                      std::span<int32_t> sampled, std::span<SampleResult> results) = 0;

  // ---- execution
  // ----------------------------------------------------------------------------------
  /// The shape a step should be padded to, with rows that belong to no request: a backend that
  /// captures graphs has few shapes.
  virtual StepShape PaddedShape(const StepShape& shape) const { return shape; }
  /// Runs `step`; a backend that captures graphs may replay what it captured for `key` instead.
  virtual void Run(const StepKey& key, const std::function<void()>& step) {
    (void)key;
    step();
  }
  /// The memory that the steps of `owner` use is about to be freed.
  virtual void ForgetSteps(uint64_t owner) { (void)owner; }
  virtual StepCounts step_counts() const { return {}; }

  /// How many steps an engine should be ahead when nobody says: 1 where the device works by itself.
  virtual int preferred_pipeline_depth() const { return 0; }
  /// A ticket for everything submitted so far.
  virtual uint64_t Record() { return 0; }
  /// Waits for what `ticket` stands for; results of Sample are valid then. RESOURCE_EXHAUSTED: the
  /// work since the ticket before lacked memory and its results mean nothing, but the device lives.
  /// Anything else: the device has failed.
  virtual absl::Status Wait(uint64_t ticket) {
    (void)ticket;
    return Synchronize();
  }
  /// Waits for everything submitted; errors as Wait's.
  virtual absl::Status Synchronize() { return absl::OkStatus(); }

 private:
  MemoryAccount memory_;  // first member of every backend: outlives the buffers booked to it
};

}  // namespace quantd

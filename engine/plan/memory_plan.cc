#include "engine/plan/memory_plan.h"

#include <algorithm>
#include <span>

#include "engine/plan/sizes.h"
#include "engine/plan/workspace.h"

namespace quantd {
namespace {

using plan::Size;

/// Bytes of the host's canonical form of a matrix: a byte a code, f32 scales and zero points.
int64_t CanonicalBytes(const ModulePlan& w) {
  const QuantFormat& f = w.format;
  const int64_t elements = w.shape.n * w.shape.k;
  if (IsPlain(f.codec)) return elements * BitsOf(f.codec) / 8;
  const int64_t blocks = f.block.Count(w.shape.n, w.shape.k);
  int64_t bytes = elements + ColumnOrderBytes(f, w.shape.k);
  if (f.scale == ScaleType::kNested) {
    bytes += blocks + 256 * 4 + 4 * CeilDiv(blocks, 256);
  } else {
    bytes += 4 * blocks;
  }
  return f.zero == ZeroType::kNone ? bytes : bytes + 4 * blocks;
}

/// Formats that cuda makes of stored floats itself: no matrix passes through the host.
bool QuantizedOnDevice(const ModulePlan& w) {
  if (w.import != nullptr) return false;
  if (IsPlain(w.format.codec)) return w.format == QuantFormat::Plain(w.stored);
  return w.format.codec == Codec::kNf4 || w.format.codec == Codec::kFp4 ||
         w.format == QuantFormat::Int8Row();
}

class Planner {
 public:
  explicit Planner(const PlanDevice& device) : device_(device) {}

  /// One packed weight: a module, or several that are fused.
  void Add(std::span<const ModulePlan> modules, MemoryComponent component) {
    const int64_t columns = ColumnOrderBytes(modules[0].format, modules[0].shape.k);
    PackedBytes packed = {0, columns};
    for (const ModulePlan& w : modules) {
      const PackedBytes part = PackedBytesOf(device_.backend, w.format, w.shape.n, w.shape.k);
      packed.codes += part.codes;
      packed.scales += part.scales;
      plan_.parameters += w.shape.n * w.shape.k;
      if (!w.bias.empty()) Vector(w.shape.n);
    }
    Book(component, packed.codes);
    Book(MemoryComponent::kScales, packed.scales);
    if (component != MemoryComponent::kEmbedding) {
      plan_.bytes_read_per_step += packed.codes + packed.scales;
    }
    for (const ModulePlan& w : modules) NotePeak(w);
  }

  void Vector(int64_t size) {
    Book(MemoryComponent::kNorms, 4 * size);
    plan_.parameters += size;
    plan_.bytes_read_per_step += 4 * size;
  }

  void Book(MemoryComponent component, int64_t bytes) {
    plan_.bytes[static_cast<size_t>(component)] += bytes;
  }

  MemoryPlan& plan() { return plan_; }

 private:
  // What there is at once while `w`, whose packed weight is booked, is being made.
  void NotePeak(const ModulePlan& w) {
    const int64_t packed = plan_.weights();
    if (device_.backend != PlanBackend::kCuda) {
      plan_.load_peak_host = std::max(plan_.load_peak_host, packed + CanonicalBytes(w));
      return;
    }
    const bool on_device = QuantizedOnDevice(w);
    const int64_t values = w.shape.n * w.shape.k * Size(w.stored);
    const bool staged = on_device && !IsPlain(w.format.codec);
    plan_.load_peak_device = std::max(plan_.load_peak_device, packed + (staged ? values : 0));
    plan_.load_peak_host = std::max(plan_.load_peak_host, on_device ? 0 : CanonicalBytes(w));
  }

  const PlanDevice& device_;
  MemoryPlan plan_;
};

/// Of one token's K or V in one head: the values, and an f32 scale of int8.
int64_t KvRowBytes(const DecoderSpec& spec, DType kv) {
  return spec.head_dim * Size(kv) + (kv == DType::kI8 ? 4 : 0);
}

/// Decoder's step buffers: the stream, its normed copy, q k v, attention's output, a branch, gate
/// and up, their product; and stream and branch once more for the rows of logits.
int64_t ActivationElements(const DecoderSpec& spec, const PlanLimits& limits) {
  const int64_t heads = 2 * (spec.num_heads + spec.num_kv_heads);
  const int64_t row = 3 * spec.hidden_size + heads * spec.head_dim + 3 * spec.intermediate_size;
  return limits.max_num_batched_tokens * row + limits.max_logit_rows * 2 * spec.hidden_size;
}

}  // namespace

int64_t MemoryPlan::weights() const {
  return of(MemoryComponent::kWeights) + of(MemoryComponent::kScales) +
         of(MemoryComponent::kEmbedding) + of(MemoryComponent::kHead) + of(MemoryComponent::kNorms);
}

int64_t MemoryPlan::workspace() const {
  return of(MemoryComponent::kActivations) + of(MemoryComponent::kWorkspace);
}

int64_t MemoryPlan::total() const {
  return weights() + workspace() + of(MemoryComponent::kKvCache);
}

int64_t MemoryPlan::KvTokensIn(int64_t memory, int64_t block_size) const {
  const int64_t room = memory - weights() - workspace();
  return std::max<int64_t>(0, room / (kv_bytes_per_token * block_size) - 1) * block_size;
}

MemoryPlan MemoryPlan::WithKvTokens(int64_t tokens, int64_t block_size) const {
  MemoryPlan plan = *this;
  plan.bytes[static_cast<size_t>(MemoryComponent::kKvCache)] =
      (CeilDiv(tokens, block_size) + 1) * block_size * kv_bytes_per_token;
  return plan;
}

MemoryPlan PlanMemory(const DecoderSpec& spec, const ExpectedWeights& expected,
                      const WeightsPlan& weights, DType compute, DType kv, const PlanLimits& limits,
                      const PlanDevice& device) {
  Planner planner(device);
  planner.Add({&weights.embedding, 1}, MemoryComponent::kEmbedding);
  for (const auto& group : weights.groups) {
    for (const auto run : FusedRuns(group)) planner.Add(run, MemoryComponent::kWeights);
  }
  if (weights.head) planner.Add({&*weights.head, 1}, MemoryComponent::kHead);
  for (const ExpectedVector& v : expected.vectors) planner.Vector(v.size);
  MemoryPlan& plan = planner.plan();
  if (!weights.head) {  // the embedding is read as the head
    plan.bytes_read_per_step += plan.of(MemoryComponent::kEmbedding);
  }
  const int64_t positions =
      limits.max_model_len > 0 ? limits.max_model_len : spec.max_position_embeddings;
  planner.Book(MemoryComponent::kNorms,
               (spec.sliding_rope ? 2 : 1) * positions * spec.rotary_dim() * 4);
  planner.Book(MemoryComponent::kActivations, ActivationElements(spec, limits) * Size(compute));
  planner.Book(MemoryComponent::kWorkspace, WorkspaceBytes(spec, weights, compute, limits, device));
  plan.kv_bytes_per_token = 2 * spec.num_layers * spec.num_kv_heads * KvRowBytes(spec, kv);
  return plan;
}

}  // namespace quantd

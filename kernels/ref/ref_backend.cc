// RefBackend: memory, weight packing and sampling of `ref`; its numeric ops are in the files
// beside.
#include "kernels/ref/ref_backend.h"

#include "kernels/host_backend.h"
#include "kernels/op_checks.h"
#include "kernels/ref/ops.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using ref::RefPackedWeight;

class RefBackend : public HostBackend {
 public:
  std::string_view name() const override { return "ref"; }

  DeviceInfo info() const override { return HostInfo("plain loops, 1 thread", "scalar"); }

  absl::StatusOr<std::unique_ptr<PackedWeight>> CreatePacked(const QuantFormat& format, int64_t k,
                                                             std::vector<RowSegment> segments,
                                                             MemoryComponent component) override {
    RETURN_IF_ERROR(CheckCreatePacked(format, k, segments));
    RefPackedWeight::Plan plan = RefPackedWeight::PlanFor(format, k, segments);
    ASSIGN_OR_RETURN(Buffer codes, Allocate(plan.codes_bytes, component));
    ASSIGN_OR_RETURN(Buffer scales, Allocate(plan.scales_bytes, MemoryComponent::kScales));
    return std::make_unique<RefPackedWeight>(format, k, std::move(segments), std::move(plan),
                                             std::move(codes), std::move(scales));
  }

  absl::Status PackRows(PackedWeight& weight, size_t segment,
                        const QuantizedMatrix& matrix) override {
    RETURN_IF_ERROR(CheckPackRows(weight, segment, matrix));
    static_cast<RefPackedWeight&>(weight).Fill(segment, matrix);
    return absl::OkStatus();
  }

  void Embed(const PackedWeight& table, std::span<const int32_t> ids, float scale,
             TensorView out) override {
    CheckEmbed(table, ids, out);
    CheckIds(ids, table.n(), "ids");
    ref::Embed(Weight(table), ids, scale, out);
  }

  void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) override {
    CheckRmsNorm(x, weight, out);
    ref::RmsNorm(x, weight, eps, out);
  }

  void AddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                  TensorView out) override {
    CheckAddRmsNorm(residual, x, weight, out);
    ref::AddRmsNorm(residual, x, weight, eps, out);
  }

  void Linear(const PackedWeight& w, const ActivationQuant& activation, TensorView x,
              const float* bias, TensorView y) override {
    CheckLinear(w, activation, x, y);
    ref::Linear(Weight(w), activation, x, bias, y);
  }

  void NormHeads(TensorView q, TensorView k, const float* q_weight, const float* k_weight,
                 float eps, const AttentionSpec& spec) override {
    CheckNormHeads(q, k, q_weight, k_weight, spec);
    ref::NormHeads(q, k, q_weight, k_weight, eps, spec);
  }

  void RopeAndStoreKv(TensorView q, TensorView k, TensorView v, const float* cos_sin,
                      const AttentionSpec& spec, const AttentionBatch& batch,
                      const KvLayer& cache) override {
    CheckRopeAndStoreKv(q, k, v, cos_sin, spec, batch, cache);
    CheckSlotIds(batch, cache);
    ref::RopeAndStoreKv(q, k, v, cos_sin, spec, batch, cache);
  }

  void Attention(TensorView q, const AttentionSpec& spec, const AttentionBatch& batch,
                 const KvLayer& cache, TensorView out) override {
    CheckAttention(q, spec, batch, cache, out);
    CheckAttentionIds(batch, cache);
    ref::Attention(q, spec, batch, cache, out);
  }

  void GatedActivation(TensorView gate_up, Activation activation, TensorView out) override {
    CheckGatedActivation(gate_up, out);
    ref::GatedActivation(gate_up, activation, out);
  }

  void SoftCap(TensorView x, float cap) override {
    CheckSoftCap(x, cap);
    ref::SoftCap(x, cap);
  }

  void GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override {
    CheckGatherRows(x, rows, out);
    CheckIds(rows, x.rows, "rows");
    ref::GatherRows(x, rows, out);
  }

  void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                      std::span<const int32_t> sampled) override {
    CheckFeedBackTokens(ids, source);
    ref::FeedBackTokens(ids, source, sampled);
  }

  void Sample(TensorView logits, std::span<const SampleParams> params, std::span<int32_t> sampled,
              std::span<SampleResult> results) override {
    CheckSample(logits, params, sampled, results);
    const size_t vocab = static_cast<size_t>(logits.cols);
    if (scratch_.size() < 2 * vocab) scratch_.resize(2 * vocab);
    for (size_t r = 0; r < params.size(); ++r) {
      float* row = logits.Row<float>(static_cast<int64_t>(r));
      SampleRow({row, vocab}, params[r], scratch_, results[r]);
      sampled[r] = results[r].token_id;
    }
  }

 private:
  static const RefPackedWeight& Weight(const PackedWeight& w) {
    return static_cast<const RefPackedWeight&>(w);
  }

  std::vector<TokenLogprob> scratch_;
};

}  // namespace

std::unique_ptr<Backend> CreateRefBackend() { return std::make_unique<RefBackend>(); }

}  // namespace quantd

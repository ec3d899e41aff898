// RefBackend: memory, weight packing and sampling of `ref`; its numeric ops are in the files
// beside.
#include "kernels/ref/ref_backend.h"

#include <sys/mman.h>
#include <sys/sysinfo.h>

#include <cstring>
#include <new>

#include "kernels/op_checks.h"
#include "kernels/ref/ops.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using ref::RefPackedWeight;

constexpr std::align_val_t kAlignment{64};
/// From here on memory comes from the kernel page by page: it is zero already, a KV cache costs
/// nothing until it is written, and a request far beyond memory is refused instead of aborting a
/// sanitizer.
constexpr size_t kMapFrom = size_t{1} << 26;

void FreeHeap(void* data, size_t) { ::operator delete(data, kAlignment); }
void Unmap(void* data, size_t bytes) { munmap(data, bytes); }

class RefBackend : public Backend {
 public:
  std::string_view name() const override { return "ref"; }

  DeviceInfo info() const override {
    struct sysinfo system {};
    sysinfo(&system);
    const int64_t unit = system.mem_unit;
    return {.description = "plain loops, 1 thread",
            .isa = "scalar",
            .total_memory = static_cast<int64_t>(system.totalram) * unit,
            .free_memory = static_cast<int64_t>(system.freeram + system.bufferram) * unit};
  }

  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component) override {
    if (bytes == 0) return Buffer();
    if (bytes < kMapFrom) {
      void* data = ::operator new(bytes, kAlignment, std::nothrow);
      if (data == nullptr) return NoRoom(bytes, component);
      std::memset(data, 0, bytes);
      return Buffer(data, bytes, FreeHeap, &memory(), component);
    }
    void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return NoRoom(bytes, component);
    return Buffer(data, bytes, Unmap, &memory(), component);
  }

  void Upload(const void* host, size_t bytes, void* device) override {
    if (bytes > 0) std::memcpy(device, host, bytes);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    if (bytes > 0) std::memcpy(host, device, bytes);
  }

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

  void Embed(const PackedWeight& table, std::span<const int32_t> ids, TensorView out) override {
    CheckEmbed(table, ids, out);
    CheckIds(ids, table.n(), "ids");
    ref::Embed(Weight(table), ids, out);
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
      const float* row = logits.Row<float>(static_cast<int64_t>(r));
      SampleRow({row, vocab}, params[r], scratch_, results[r]);
      sampled[r] = results[r].token_id;
    }
  }

 private:
  static absl::Status NoRoom(size_t bytes, MemoryComponent component) {
    return ResourceExhausted("no memory for {} bytes of {}", bytes, ToString(component));
  }
  static const RefPackedWeight& Weight(const PackedWeight& w) {
    return static_cast<const RefPackedWeight&>(w);
  }

  std::vector<TokenLogprob> scratch_;
};

}  // namespace

std::unique_ptr<Backend> CreateRefBackend() { return std::make_unique<RefBackend>(); }

}  // namespace quantd

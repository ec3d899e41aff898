// CudaBackend: checks, memory, order of execution and choice of kernels; the kernels are behind
// ops.h.
//
// All work goes to one stream, in the order of the calls; nothing waits but Download, Wait and
// Synchronize. An op that lacks memory is left out and its step fails; an op that breaks the device
// fails all steps from there on.
#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <optional>

#include "kernels/cuda/arena.h"
#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda_linear.h"
#include "kernels/cuda/cuda_sampler.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/op_checks.h"
#include "kernels/quant/quantize.h"
#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

// Sizes. Emulation has small ones, so that rings wrap and slabs repeat on small shapes, and an
// allocation of its own for every buffer, so that what is written beside it is found.
struct Sizes {
  std::string_view name;
  size_t arena_slab;
  size_t staging_segment;
  int staging_segments;
  size_t min_slab, max_slab;  // of a matrix dequantized for cuBLASLt
};
#ifdef QUANTD_CUDA_EMULATED
constexpr Sizes kSizes = {"cuda-emulated", 0, size_t{16} << 10, 3, size_t{64} << 10,
                          size_t{64} << 10};
#else
constexpr Sizes kSizes = {"cuda", size_t{128} << 20, size_t{4} << 20,
                          8,      size_t{32} << 20,  size_t{256} << 20};
#endif

FloatType TypeOf(DType t) {
  return t == DType::kF32 ? FloatType::kF32 : t == DType::kF16 ? FloatType::kF16 : FloatType::kBF16;
}

Matrix ToMatrix(const TensorView& x) {
  return {TypeOf(x.dtype), x.data, static_cast<int32_t>(x.rows), static_cast<int32_t>(x.cols),
          x.stride};
}

AttentionShape ToShape(const AttentionSpec& spec) {
  return {spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.scale,
          spec.window,    spec.softcap,      spec.rotated()};
}

AttentionArrays ToArrays(const AttentionBatch& batch) {
  return {batch.positions.data(),    batch.slots.data(), batch.seq_of_row.data(),
          batch.block_tables.data(), batch.num_seqs,     batch.max_blocks};
}

KvArrays ToArrays(const KvLayer& cache) {
  return {TypeOf(cache.dtype), cache.k,        cache.v,       cache.num_blocks,
          cache.block_size,    cache.k_scales, cache.v_scales};
}

bool IsNested(const QuantFormat& format) { return format.scale == ScaleType::kNested; }

const CudaPackedWeight& Packed(const PackedWeight& w) {
  return static_cast<const CudaPackedWeight&>(w);
}

class CudaBackend final : public Backend {
 public:
  static absl::StatusOr<std::unique_ptr<Backend>> Create(const CudaBackendOptions& options) {
    ASSIGN_OR_RETURN(const DeviceFacts facts, OpenDevice(options.device));
    std::unique_ptr<CudaBackend> backend(new CudaBackend(options, facts));
    RETURN_IF_ERROR(FirstError());
    RETURN_IF_ERROR(backend->Start());
    return backend;
  }

  ~CudaBackend() override {
    UseDevice();
    WaitForAll().IgnoreError();
    graphs_.reset();
    sampler_.reset();
    linear_.reset();
    scratch_.reset();
    cublaslt_.reset();
    staging_.reset();
    arena_.reset();
    for (const Ticket& ticket : tickets_) {
      if (ticket.event != nullptr) DestroyEvent(ticket.event);
    }
    DestroyStream(context_.side);
    DestroyStream(context_.stream);
  }

  std::string_view name() const override { return kSizes.name; }

  DeviceInfo info() const override {
    int64_t free = 0;
    if (const auto now = OpenDevice(options_.device); now.ok()) free = now->free_memory;
    return {
        .description = fmt::format("{}, {} multiprocessors{}", facts_.name, facts_.multiprocessors,
                                   cublaslt_ == nullptr ? ", without cuBLASLt" : ""),
        .isa = fmt::format("sm_{}{}", facts_.major, facts_.minor),
        .total_memory = facts_.total_memory,
        .free_memory = free};
  }

  // ---- memory and weights

  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component) override {
    UseDevice();
    return arena_->Allocate(bytes, component);
  }
  void Upload(const void* host, size_t bytes, void* device) override {
    UseDevice();
    staging_->Upload(host, bytes, device);
  }
  void Download(const void* device, size_t bytes, void* host) override {
    UseDevice();
    staging_->Download(device, bytes, host);
  }

  absl::StatusOr<std::unique_ptr<PackedWeight>> CreatePacked(const QuantFormat& format, int64_t k,
                                                             std::vector<RowSegment> segments,
                                                             MemoryComponent component) override {
    RETURN_IF_ERROR(CheckCreatePacked(format, k, segments));
    RETURN_IF_ERROR(CudaPackedWeight::CheckSupported(format, k, segments));
    CudaPackedWeight::Plan plan = CudaPackedWeight::PlanFor(format, k, segments);
    ASSIGN_OR_RETURN(Buffer codes, Allocate(plan.code_bytes, component));
    ASSIGN_OR_RETURN(Buffer scales, Allocate(plan.scale_bytes, MemoryComponent::kScales));
    return std::make_unique<CudaPackedWeight>(format, k, std::move(segments), std::move(plan),
                                              std::move(codes), std::move(scales));
  }

  absl::Status PackRows(PackedWeight& weight, size_t segment,
                        const QuantizedMatrix& matrix) override {
    RETURN_IF_ERROR(CheckPackRows(weight, segment, matrix));
    static_cast<CudaPackedWeight&>(weight).Pack(segment, matrix, Uploader());
    return absl::OkStatus();
  }

  bool QuantizesRows(const QuantFormat& format, DType values) const override {
    if (IsPlain(format.codec)) return format == QuantFormat::Plain(values);
    return format == QuantFormat::Int8Row() ||
           (format.block.kind == BlockShape::Kind::kFlat &&
            (format == QuantFormat::Block4(Codec::kNf4, format.block.size, IsNested(format)) ||
             format == QuantFormat::Block4(Codec::kFp4, format.block.size, IsNested(format))));
  }

  absl::Status QuantizeRows(PackedWeight& weight, size_t segment,
                            const TensorView& values) override {
    const QuantFormat& format = weight.format();
    QUANTD_CHECK(QuantizesRows(format, values.dtype) && segment < weight.segments().size() &&
                     values.rows == weight.segments()[segment].rows && values.cols == weight.k() &&
                     values.stride == values.cols,
                 "{} [{}, {}] for segment {} of a {} weight", ToString(values.dtype), values.rows,
                 values.cols, segment, format.ToString());
    auto& packed = static_cast<CudaPackedWeight&>(weight);
    WeightView view = packed.view();
    WeightSegment& target = view.segments[segment];
    if (IsPlain(format.codec)) {
      Upload(values.data, values.bytes(), const_cast<uint8_t*>(target.codes));
      return FirstError();
    }
    ASSIGN_OR_RETURN(const Buffer device, Allocate(values.bytes(), MemoryComponent::kWorkspace));
    Upload(values.data, values.bytes(), device.data());
    TensorView there = values;
    there.data = device.data();
    const int index = static_cast<int>(segment);
    if (format.codec == Codec::kInt8) {
      QuantizeInt8Rows(view, index, ToMatrix(there), context_.stream);
    } else if (format.scale != ScaleType::kNested) {
      QuantizeBlock4(view, index, ToMatrix(there), context_.stream);
    } else {
      return QuantizeNested(packed, segment, there);
    }
    return FirstError();
  }

  // ---- ops

  void Embed(const PackedWeight& table, std::span<const int32_t> ids, float scale,
             TensorView out) override {
    CheckEmbed(table, ids, out);
    if (out.rows == 0) return;
    QUANTD_CUDA_NS::Embed(Packed(table).view(), ids.data(), scale, ToMatrix(out), context_.stream);
  }

  void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) override {
    CheckRmsNorm(x, weight, out);
    if (x.rows == 0) return;
    QUANTD_CUDA_NS::RmsNorm(ToMatrix(x), weight, eps, ToMatrix(out), context_.stream);
  }

  void AddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                  TensorView out) override {
    CheckAddRmsNorm(residual, x, weight, out);
    if (x.rows == 0) return;
    QUANTD_CUDA_NS::AddRmsNorm(ToMatrix(residual), ToMatrix(x), weight, eps, ToMatrix(out),
                               context_.stream);
  }

  void Linear(const PackedWeight& w, const ActivationQuant& activation, TensorView x,
              const float* bias, TensorView y) override {
    CheckLinear(w, activation, x, y);
    if (x.rows == 0) return;
    linear_->Run(Packed(w).view(), activation, ToMatrix(x), bias, ToMatrix(y));
  }

  void NormHeads(TensorView q, TensorView k, const float* q_weight, const float* k_weight,
                 float eps, const AttentionSpec& spec) override {
    CheckNormHeads(q, k, q_weight, k_weight, spec);
    if (q.rows == 0) return;
    QUANTD_CUDA_NS::NormHeads(ToMatrix(q), ToMatrix(k), q_weight, k_weight, eps, ToShape(spec),
                              context_.stream);
  }

  void RopeAndStoreKv(TensorView q, TensorView k, TensorView v, const float* cos_sin,
                      const AttentionSpec& spec, const AttentionBatch& batch,
                      const KvLayer& cache) override {
    CheckRopeAndStoreKv(q, k, v, cos_sin, spec, batch, cache);
    if (q.rows == 0) return;
    QUANTD_CUDA_NS::RopeAndStoreKv(ToMatrix(q), ToMatrix(k), ToMatrix(v), cos_sin, ToShape(spec),
                                   ToArrays(batch), ToArrays(cache), context_.stream);
  }

  void Attention(TensorView q, const AttentionSpec& spec, const AttentionBatch& batch,
                 const KvLayer& cache, TensorView out) override {
    CheckAttention(q, spec, batch, cache, out);
    if (q.rows == 0) return;
    const auto rows = static_cast<int32_t>(q.rows);
    Workspace workspace;
    if (!scratch_->Reserve(
            AttentionWorkspaceBytes(rows, ToShape(spec), batch.max_blocks, cache.block_size),
            AttentionCounters(rows, ToShape(spec)), &workspace)) {
      return;
    }
    QUANTD_CUDA_NS::Attention(ToMatrix(q), ToShape(spec), ToArrays(batch), ToArrays(cache),
                              ToMatrix(out), workspace, context_.limits, context_.stream);
  }

  void GatedActivation(TensorView gate_up, Activation activation, TensorView out) override {
    CheckGatedActivation(gate_up, out);
    if (out.rows == 0) return;
    QUANTD_CUDA_NS::GatedActivation(ToMatrix(gate_up), activation == Activation::kGeluTanh,
                                    ToMatrix(out), context_.stream);
  }

  void SoftCap(TensorView x, float cap) override {
    CheckSoftCap(x, cap);
    if (x.rows == 0) return;
    QUANTD_CUDA_NS::SoftCap(ToMatrix(x), cap, context_.stream);
  }

  void GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override {
    CheckGatherRows(x, rows, out);
    if (out.rows == 0) return;
    QUANTD_CUDA_NS::GatherRows(ToMatrix(x), rows.data(), ToMatrix(out), context_.stream);
  }

  void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                      std::span<const int32_t> sampled) override {
    CheckFeedBackTokens(ids, source);
    if (ids.empty()) return;
    QUANTD_CUDA_NS::FeedBackTokens(ids.data(), source.data(), sampled.data(),
                                   static_cast<int32_t>(ids.size()), context_.stream);
  }

  void Sample(TensorView logits, std::span<const SampleParams> params, std::span<int32_t> sampled,
              std::span<SampleResult> results) override {
    CheckSample(logits, params, sampled, results);
    if (logits.rows == 0) return;
    UseDevice();
    sampler_->Sample(ToMatrix(logits), params, sampled, results, last_ticket_ + 1);
  }

  // ---- execution

  StepShape PaddedShape(const StepShape& shape) const override {
    return options_.graphs ? PaddedStepShape(shape) : shape;
  }

  void Run(const StepKey& key, const std::function<void()>& step) override {
    UseDevice();
    graphs_->Run(options_.graphs ? key : StepKey{}, step);
  }
  void ForgetSteps(uint64_t owner) override {
    UseDevice();
    graphs_->Forget(owner);
  }
  StepCounts step_counts() const override { return graphs_->counts(); }
  int preferred_pipeline_depth() const override { return 1; }

  uint64_t Record() override {
    UseDevice();
    Ticket& ticket = tickets_[++last_ticket_ % kTickets];
    if (ticket.event == nullptr) ticket.event = CreateEvent();
    QUANTD_CUDA_NS::Record(ticket.event, context_.stream);
    ticket.status = std::exchange(context_.failure, absl::OkStatus());
    return last_ticket_;
  }

  absl::Status Wait(uint64_t number) override {
    UseDevice();
    if (number == 0 || number > last_ticket_ || number + kTickets <= last_ticket_) {
      return Synchronize();
    }
    const Ticket& ticket = tickets_[number % kTickets];
    return Finished(QUANTD_CUDA_NS::Wait(ticket.event), number, ticket.status);
  }

  absl::Status Synchronize() override {
    UseDevice();
    const absl::Status device = WaitForAll();
    return Finished(device, last_ticket_ + 1, std::exchange(context_.failure, absl::OkStatus()));
  }

 private:
  struct Ticket {
    Event event = nullptr;
    absl::Status status;  // memory that its work lacked
  };
  static constexpr uint64_t kTickets = 8;

  CudaBackend(const CudaBackendOptions& options, const DeviceFacts& facts)
      : options_(options), facts_(facts) {
    context_.stream = CreateStream();
    context_.side = CreateStream();
    context_.limits = {facts.multiprocessors, facts.major, facts.minor, facts.max_shared_memory};
  }

  /// cuBLASLt fills the device with a whole matrix, not with a part of one; but a small device has
  /// no room for the largest.
  size_t SlabBytes() const {
    constexpr int64_t kShare = 256;
    return std::clamp(static_cast<size_t>(facts_.total_memory / kShare), kSizes.min_slab,
                      kSizes.max_slab);
  }

  absl::Status Start() {
    arena_.emplace(context_.stream, &memory(),
                   ArenaOptions{kSizes.arena_slab, options_.memory_limit, options_.device});
    context_.arena = &*arena_;
    ASSIGN_OR_RETURN(staging_, Staging::Create(context_.stream, kSizes.staging_segment,
                                               kSizes.staging_segments));
    context_.staging = staging_.get();
    // Without the library our own kernels do everything, large steps more slowly.
    if (auto library = CublasLt::Open(); library.ok()) cublaslt_ = *std::move(library);
    scratch_.emplace(context_);
    linear_.emplace(context_, *scratch_, cublaslt_.get(), options_.determinism, SlabBytes());
    sampler_.emplace(context_);
    graphs_.emplace(context_);
    context_.before_growth = [this] { graphs_->DropGraphs(); };
    return FirstError();
  }

  // A thread's first call makes the device this backend's; CUDA keeps one for each thread.
  void UseDevice() const {
    static thread_local int current = 0;  // what a new thread has
    if (current == options_.device) return;
    if (OpenDevice(options_.device).ok()) current = options_.device;
  }

  CudaPackedWeight::Upload Uploader() {
    return [this](const void* host, size_t bytes, void* device) { Upload(host, bytes, device); };
  }

  // Codes on the device; its scales, a 64th of the values, come to the host to be nested.
  absl::Status QuantizeNested(CudaPackedWeight& weight, size_t segment, const TensorView& values) {
    const QuantFormat& format = weight.format();
    QuantizedMatrix matrix;
    matrix.format = QuantFormat::Block4(format.codec, format.block.size, /*nested=*/false);
    const int64_t blocks = (values.rows * values.cols + format.block.size - 1) / format.block.size;
    matrix.scales.resize(static_cast<size_t>(blocks));
    const size_t bytes = matrix.scales.size() * sizeof(float);
    ASSIGN_OR_RETURN(const Buffer scales, Allocate(bytes, MemoryComponent::kWorkspace));
    WeightView view = weight.view();
    view.scale = Stored::kF32;
    view.order = BlockOrder::kFlat;
    view.segments[segment].scales = scales.as<float>();
    QuantizeBlock4(view, static_cast<int>(segment), ToMatrix(values), context_.stream);
    Download(scales.data(), bytes, matrix.scales.data());
    RETURN_IF_ERROR(FirstError());
    NestScales(matrix);
    weight.PackScales(segment, matrix, Uploader());
    return FirstError();
  }

  absl::Status WaitForAll() {
    const absl::Status side = QUANTD_CUDA_NS::Synchronize(context_.side);
    const absl::Status main = QUANTD_CUDA_NS::Synchronize(context_.stream);
    return side.ok() ? main : side;
  }

  // What a wait that ended with `device` means for steps up to `ticket`, one of which `lacked`
  // memory.
  absl::Status Finished(const absl::Status& device, uint64_t ticket, const absl::Status& lacked) {
    if (!device.ok()) {
      sampler_->Drop();
      return device;
    }
    sampler_->Collect(ticket);
    return lacked;
  }

  const CudaBackendOptions options_;
  const DeviceFacts facts_;
  DeviceContext context_;
  std::optional<Arena> arena_;
  std::unique_ptr<Staging> staging_;
  std::unique_ptr<CublasLt> cublaslt_;  // may be null
  std::optional<Scratch> scratch_;
  std::optional<CudaLinear> linear_;
  std::optional<CudaSampler> sampler_;
  std::optional<StepGraphs> graphs_;
  Ticket tickets_[kTickets];
  uint64_t last_ticket_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateBackend(const CudaBackendOptions& options) {
  return CudaBackend::Create(options);
}

}  // namespace quantd::QUANTD_CUDA_NS

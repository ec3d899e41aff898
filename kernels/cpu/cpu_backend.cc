// CpuBackend: checks, memory and threads of the ops; the numerics are in the files beside.
#include "kernels/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>

#include "kernels/ceil_div.h"
#include "kernels/cpu/linear_op.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/host_backend.h"
#include "kernels/op_checks.h"
#include "kernels/status.h"

namespace quantd {
namespace {

/// Elements below which an elementwise op stays on the caller: some 5 microseconds, what waking
/// costs.
constexpr int64_t kMinParallelElements = int64_t{1} << 15;
/// Multiply-adds of attention below which it stays on the caller.
constexpr int64_t kMinParallelAttention = int64_t{1} << 17;
/// Vocabulary entries a row of greedy sampling may have before rows are worth splitting.
constexpr int64_t kMinParallelLogits = int64_t{1} << 16;

std::string ProcessorName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "x86-64";
}

class CpuBackend : public HostBackend {
 public:
  CpuBackend(CpuIsa isa, int num_threads)
      : isa_(isa),
        pool_(num_threads),
        linear_(isa, pool_, memory()),
        norm_(NormKernelsFor(isa)),
        elementwise_(ElementwiseKernelsFor(isa)),
        rope_(RopeKernelsFor(isa)),
        attention_(AttentionKernelsFor(isa)) {}

  std::string_view name() const override { return "cpu"; }

  DeviceInfo info() const override {
    const std::string isa(ToString(isa_));
    const int threads = pool_.num_threads();
    return HostInfo(
        fmt::format("{}, {} thread{}, {}", ProcessorName(), threads, threads == 1 ? "" : "s", isa),
        isa);
  }

  absl::StatusOr<std::unique_ptr<PackedWeight>> CreatePacked(const QuantFormat& format, int64_t k,
                                                             std::vector<RowSegment> segments,
                                                             MemoryComponent component) override {
    RETURN_IF_ERROR(CheckCreatePacked(format, k, segments));
    return CpuPackedWeight::Create(format, k, std::move(segments), component, memory());
  }

  absl::Status PackRows(PackedWeight& weight, size_t segment,
                        const QuantizedMatrix& matrix) override {
    RETURN_IF_ERROR(CheckPackRows(weight, segment, matrix));
    static_cast<CpuPackedWeight&>(weight).Pack(segment, matrix, pool_);
    return absl::OkStatus();
  }

  void Embed(const PackedWeight& table, std::span<const int32_t> ids, float scale,
             TensorView out) override {
    CheckEmbed(table, ids, out);
    CheckIds(ids, table.n(), "ids");
    const auto& weight = static_cast<const CpuPackedWeight&>(table);
    float* floats = PerThread(floats_, floats_stride_, out.cols);
    ForRows(out.rows, out.cols, [&](int64_t row, int worker) {
      float* values = floats + worker * floats_stride_;
      weight.ReadRow(ids[static_cast<size_t>(row)], values);
      elementwise_.from_floats(values, out.cols, scale, out.dtype, RowOf(out, row));
    });
  }

  void RmsNorm(TensorView x, const float* weight, float eps, TensorView out) override {
    CheckRmsNorm(x, weight, out);
    ForRows(x.rows, x.cols, [&](int64_t row, int) { norm_.rms_norm(x, row, weight, eps, out); });
  }

  void AddRmsNorm(TensorView residual, TensorView x, const float* weight, float eps,
                  TensorView out) override {
    CheckAddRmsNorm(residual, x, weight, out);
    ForRows(x.rows, x.cols, [&](int64_t row, int) {
      norm_.add(residual, x, row);
      norm_.rms_norm(residual, row, weight, eps, out);  // of the rounded sum
    });
  }

  void Linear(const PackedWeight& w, const ActivationQuant& activation, TensorView x,
              const float* bias, TensorView y) override {
    CheckLinear(w, activation, x, y);
    linear_.Run(static_cast<const CpuPackedWeight&>(w), activation, x, bias, y);
  }

  void NormHeads(TensorView q, TensorView k, const float* q_weight, const float* k_weight,
                 float eps, const AttentionSpec& spec) override {
    CheckNormHeads(q, k, q_weight, k_weight, spec);
    ForRows(q.rows, q.cols + k.cols, [&](int64_t row, int) {
      for (int64_t first = 0; first < q.cols; first += spec.head_dim) {
        const TensorView head = q.Cols(first, spec.head_dim);
        norm_.rms_norm(head, row, q_weight, eps, head);
      }
      for (int64_t first = 0; first < k.cols; first += spec.head_dim) {
        const TensorView head = k.Cols(first, spec.head_dim);
        norm_.rms_norm(head, row, k_weight, eps, head);
      }
    });
  }

  void RopeAndStoreKv(TensorView q, TensorView k, TensorView v, const float* cos_sin,
                      const AttentionSpec& spec, const AttentionBatch& batch,
                      const KvLayer& cache) override {
    CheckRopeAndStoreKv(q, k, v, cos_sin, spec, batch, cache);
    CheckSlotIds(batch, cache);
    ForRows(q.rows, q.cols, [&](int64_t row, int) {
      rope_.rope_and_store(q, k, v, row, cos_sin, spec, batch, cache);
    });
  }

  void Attention(TensorView q, const AttentionSpec& spec, const AttentionBatch& batch,
                 const KvLayer& cache, TensorView out) override {
    CheckAttention(q, spec, batch, cache, out);
    CheckAttentionIds(batch, cache);
    float* scratch = PerThread(scratch_, scratch_stride_, attention_.scratch_floats(spec));
    const auto unit = [&](int64_t i, int worker) {
      attention_.attend(q, spec, batch, cache, i % q.rows, i / q.rows, out,
                        scratch + worker * scratch_stride_);
    };
    int64_t keys = 0;
    for (int64_t row = 0; row < q.rows; ++row) {
      const int64_t context = batch.positions[static_cast<size_t>(row)] + 1;
      keys += spec.window > 0 ? std::min<int64_t>(context, spec.window) : context;
    }
    const int64_t units = q.rows * spec.num_kv_heads;
    if (2 * keys * q.cols < kMinParallelAttention) {
      for (int64_t i = 0; i < units; ++i) unit(i, 0);
    } else {
      pool_.Run(units, unit);
    }
  }

  void GatedActivation(TensorView gate_up, Activation activation, TensorView out) override {
    CheckGatedActivation(gate_up, out);
    ForRows(out.rows, out.cols * 4,
            [&](int64_t row, int) { elementwise_.gated(gate_up, row, activation, out); });
  }

  void SoftCap(TensorView x, float cap) override {
    CheckSoftCap(x, cap);
    ForRows(x.rows, x.cols * 4,
            [&](int64_t row, int) { elementwise_.soft_cap(x.Row<float>(row), x.cols, cap); });
  }

  void GatherRows(TensorView x, std::span<const int32_t> rows, TensorView out) override {
    CheckGatherRows(x, rows, out);
    CheckIds(rows, x.rows, "rows");
    const size_t bytes = static_cast<size_t>(x.cols) * SizeOf(x.dtype);
    for (int64_t row = 0; row < out.rows; ++row) {
      std::memcpy(RowOf(out, row), RowOf(x, rows[static_cast<size_t>(row)]), bytes);
    }
  }

  void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                      std::span<const int32_t> sampled) override {
    CheckFeedBackTokens(ids, source);
    for (size_t i = 0; i < ids.size(); ++i) {
      if (source[i] >= 0) ids[i] = sampled[static_cast<size_t>(source[i])];
    }
  }

  void Sample(TensorView logits, std::span<const SampleParams> params, std::span<int32_t> sampled,
              std::span<SampleResult> results) override {
    CheckSample(logits, params, sampled, results);
    const size_t vocab = static_cast<size_t>(logits.cols);
    // Two entries of candidates a token of the vocabulary, as SampleRow wants.
    constexpr int64_t kFloatsPerEntry = sizeof(TokenLogprob) / sizeof(float);
    const bool greedy = std::all_of(params.begin(), params.end(), IsPlainGreedy);
    float* candidates =
        greedy ? nullptr
               : PerThread(candidates_, candidates_stride_, 2 * logits.cols * kFloatsPerEntry);
    const auto sample = [&](int64_t i, int worker) {
      const size_t row = static_cast<size_t>(i);
      float* values = logits.Row<float>(i);
      if (IsPlainGreedy(params[row])) {
        results[row].token_id = elementwise_.arg_max(values, logits.cols);
        results[row].finite = LogitsAreSound({values, vocab});
      } else {
        auto* entries = reinterpret_cast<TokenLogprob*>(candidates + worker * candidates_stride_);
        SampleRow({values, vocab}, params[row], {entries, 2 * vocab}, results[row]);
      }
      sampled[row] = results[row].token_id;
    };
    if (greedy && logits.rows * logits.cols < kMinParallelLogits) {
      for (int64_t i = 0; i < logits.rows; ++i) sample(i, 0);
    } else {
      pool_.Run(logits.rows, sample);
    }
  }

 private:
  static void* RowOf(const TensorView& x, int64_t row) {
    return static_cast<std::byte*>(x.data) + static_cast<size_t>(row * x.stride) * SizeOf(x.dtype);
  }
  static bool IsPlainGreedy(const SampleParams& p) {
    return !(p.temperature > 0.0f) && p.num_logprobs == 0 && p.banned_ids.empty() &&
           p.allowed_mask.empty() && p.edits.empty() && p.forced_id < 0;
  }

  /// Calls body(row, worker) for every row, on the caller alone when there is little to do.
  template <typename Body>
  void ForRows(int64_t rows, int64_t work_per_row, const Body& body) {
    if (rows * work_per_row < kMinParallelElements) {
      for (int64_t row = 0; row < rows; ++row) body(row, 0);
      return;
    }
    const int64_t chunk = CeilDiv(rows, int64_t{pool_.num_threads()} * 4);
    pool_.Run(CeilDiv(rows, chunk), [&](int64_t i, int worker) {
      const int64_t end = std::min(rows, (i + 1) * chunk);
      for (int64_t row = i * chunk; row < end; ++row) body(row, worker);
    });
  }

  /// `count` floats of scratch for each thread, `stride` apart; allocates only to grow.
  float* PerThread(Buffer& buffer, int64_t& stride, int64_t count) {
    if (count > stride) {
      stride = CeilDiv(count, 16) * 16;
      buffer = Buffer();
      auto grown = Allocate(static_cast<size_t>(stride * pool_.num_threads()) * sizeof(float),
                            MemoryComponent::kWorkspace);
      QUANTD_CHECK(grown.ok(), "{}", Message(grown.status()));
      buffer = std::move(grown).value();
    }
    return buffer.as<float>();
  }

  CpuIsa isa_;
  ThreadPool pool_;
  LinearOp linear_;
  const NormKernels& norm_;
  const ElementwiseKernels& elementwise_;
  const RopeKernels& rope_;
  const AttentionKernels& attention_;
  Buffer floats_, scratch_,
      candidates_;  // a row of Embed, attention's and Sample's, for each thread
  int64_t floats_stride_ = 0;
  int64_t scratch_stride_ = 0;
  int64_t candidates_stride_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> CreateCpuBackend(const CpuBackendOptions& options) {
  const std::vector<CpuIsa> supported = SupportedIsas();
  if (supported.empty()) {
    return Unimplemented("cpu: this processor has no AVX2; backend ref runs everywhere");
  }
  const CpuIsa isa = options.isa.value_or(supported.back());
  if (std::find(supported.begin(), supported.end(), isa) == supported.end()) {
    return InvalidArgument("cpu: isa {} is not one this processor has, allowed: up to {}",
                           ToString(isa), ToString(supported.back()));
  }
  if (options.num_threads < 0) {
    return InvalidArgument("cpu: num_threads is {}, allowed: 0 (automatic) and up",
                           options.num_threads);
  }
  const int threads = options.num_threads > 0 ? options.num_threads : AvailableThreads();
  return std::make_unique<CpuBackend>(isa, threads);
}

}  // namespace quantd

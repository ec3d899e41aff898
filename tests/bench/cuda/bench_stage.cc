// bench: time of each op at the shapes of Llama-3-8B, one decoder layer's matrices, as bytes moved
// a second. Weights and KV caches are rotated over several copies, together more than any L2, as a
// decode step does; the copies are one graph, so the figure holds the gaps between kernels too.
//
// bytes: what the op must move at least: weights and scales as packed, activations once in and once
// out, K and V of the contexts. No credit for traffic a kernel causes beyond that.
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "kernels/quant/format.h"
#include "kernels/status.h"
#include "tests/bench/cuda/launch_names.h"
#include "tests/bench/cuda/stages.h"

namespace quantd::gpu {
namespace {

using nlohmann::json;

constexpr int64_t kRotatedBytes = int64_t{256} << 20;  // four times the L2 of an H200
constexpr int kMaxCopies = 64;

struct Shape {
  const char* name;
  int64_t n, k;
};

struct Config {
  int64_t hidden, heads, kv_heads, head_dim, intermediate, vocab;
  int64_t rotated_bytes;
  double floor_seconds;
  std::vector<Shape> linears;
  std::vector<int64_t> rows, op_rows, batches, contexts, prefills;
};

Config FullConfig() {
  return {.hidden = 4096,
          .heads = 32,
          .kv_heads = 8,
          .head_dim = 128,
          .intermediate = 14336,
          .vocab = 128256,
          .rotated_bytes = kRotatedBytes,
          .floor_seconds = 0.01,
          .linears = {{"qkv", 6144, 4096},
                      {"o", 4096, 4096},
                      {"gate_up", 28672, 4096},
                      {"down", 4096, 14336}},
          .rows = {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048},
          .op_rows = {1, 64, 2048},
          .batches = {1, 8, 32, 64},
          .contexts = {512, 4096},
          .prefills = {512, 4096}};
}

Config QuickConfig() {
  return {.hidden = 128,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .intermediate = 192,
          .vocab = 320,
          .rotated_bytes = 1,
          .floor_seconds = 0,
          .linears = {{"qkv", 256, 128}},
          .rows = {1, 17},
          .op_rows = {3},
          .batches = {2},
          .contexts = {40},
          .prefills = {20}};
}

/// Random codes of any format, not a quantized matrix: speed does not depend on the values.
QuantizedMatrix RandomMatrix(const QuantFormat& format, int64_t n, int64_t k) {
  QuantizedMatrix q;
  q.format = format;
  q.n = n;
  q.k = k;
  const bool plain = IsPlain(format.codec);
  const int bits = BitsOf(format.codec);
  q.codes.resize(static_cast<size_t>(n * k * (plain ? bits / 8 : 1)));
  const uint64_t mask = bits < 8 ? (uint64_t{1} << bits) - 1 : 63;  // of bytes: no NaN
  uint64_t state = 88172645463325252u;                              // xorshift64
  for (uint8_t& code : q.codes) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    code = static_cast<uint8_t>(state & mask);
  }
  const auto blocks = static_cast<size_t>(format.block.Count(n, k));
  constexpr float kScale = 1.0f / 128;  // exact in every type
  if (format.scale == ScaleType::kNested) {
    q.nested_codes.assign(blocks, 100);
    q.nested_map.assign(256, kScale);
    q.nested_absmax.assign((blocks + 255) / 256, 1.0f);
  } else if (!plain) {
    q.scales.assign(blocks, kScale);
  }
  if (format.zero != ZeroType::kNone) {
    q.zeros.assign(blocks, IsAdded(format.zero) ? kScale : static_cast<float>(mask / 2 + 1));
  }
  for (int64_t c = 0; format.reordered && c < k; ++c) {
    q.columns.push_back(static_cast<int32_t>(k - 1 - c));
  }
  return q;
}

/// Everything the items of one run share.
class Bench {
 public:
  Bench(Backend& backend, Backend& invariant, const Config& config)
      : default_(backend), invariant_(invariant), backend_(&backend), config_(config) {}

  const Config& config() const { return config_; }
  /// The backend that what follows is measured on.
  Backend& backend() { return *backend_; }
  void Use(Determinism determinism) {
    backend_ = determinism == Determinism::kDefault ? &default_ : &invariant_;
  }

  /// Device memory of [rows, cols] with small values.
  absl::StatusOr<TensorView> Matrix(DType dtype, int64_t rows, int64_t cols) {
    const size_t count = static_cast<size_t>(rows * cols);
    const size_t bytes = count * SizeOf(dtype);
    ASSIGN_OR_RETURN(Buffer buffer, backend_->Allocate(bytes, MemoryComponent::kActivations));
    std::vector<uint8_t> host(bytes);
    for (size_t i = 0; i < count; ++i) {
      const float v = static_cast<float>(i % 31) * 0.01f - 0.15f;
      if (dtype == DType::kF32) {
        std::memcpy(&host[i * 4], &v, 4);
      } else {
        const uint16_t b = dtype == DType::kF16 ? F16(v).bits : BF16(v).bits;
        std::memcpy(&host[i * 2], &b, 2);
      }
    }
    backend_->Upload(host.data(), bytes, buffer.data());
    const TensorView view(dtype, buffer.data(), rows, cols);
    buffers_.push_back(std::move(buffer));
    return view;
  }

  absl::StatusOr<std::span<int32_t>> Ints(const std::vector<int32_t>& values) {
    ASSIGN_OR_RETURN(Buffer buffer, backend_->Allocate(values.size() * sizeof(int32_t),
                                                       MemoryComponent::kActivations));
    backend_->Upload(values.data(), values.size() * sizeof(int32_t), buffer.data());
    const std::span<int32_t> span(buffer.as<int32_t>(), values.size());
    buffers_.push_back(std::move(buffer));
    return span;
  }

  /// Copies of a weight, kept until another is asked for.
  absl::StatusOr<std::vector<const PackedWeight*>> Weights(const QuantFormat& format, int64_t n,
                                                           int64_t k) {
    const std::string key =
        fmt::format("{} {} {} {}", backend_ == &invariant_, format.ToString(), n, k);
    if (key != weights_key_) {
      weights_.clear();
      weights_key_ = key;
      const QuantizedMatrix q = RandomMatrix(format, n, k);
      for (int64_t bytes = 0;
           weights_.empty() || (bytes < config_.rotated_bytes && weights_.size() < kMaxCopies);) {
        ASSIGN_OR_RETURN(auto weight, backend_->CreatePacked(format, k, {{"w", 0, n}},
                                                             MemoryComponent::kWeights));
        RETURN_IF_ERROR(backend_->PackRows(*weight, 0, q));
        bytes += weight->bytes();
        weights_.push_back(std::move(weight));
      }
    }
    std::vector<const PackedWeight*> out;
    for (const auto& w : weights_) out.push_back(w.get());
    return out;
  }

  /// Time of `calls` ops submitted by `step`, per op; frees what Matrix and Ints gave.
  absl::StatusOr<json> Time(const std::function<void()>& step, int64_t calls, double bytes,
                            double flops = 0) {
    LaunchedSince();  // forget what came before
    const absl::StatusOr<double> median =
        MedianSeconds(*backend_, ++key_, step, config_.floor_seconds);
    backend_->ForgetSteps(key_);
    buffers_.clear();
    RETURN_IF_ERROR(median.status());
    const double seconds = *median / static_cast<double>(calls);
    json result = {{"us", seconds * 1e6},
                   {"bytes", bytes},
                   {"gb_per_s", bytes / seconds * 1e-9},
                   {"kernels", LaunchedSince()}};
    if (flops > 0) result["tflop_per_s"] = flops / seconds * 1e-12;
    return result;
  }

 private:
  Backend& default_;
  Backend& invariant_;
  Backend* backend_;
  const Config config_;
  std::vector<Buffer> buffers_;
  std::string weights_key_;
  std::vector<std::unique_ptr<PackedWeight>> weights_;
  uint64_t key_ = 0;
};

absl::StatusOr<json> Linear(Bench& bench, const std::string& format_name,
                            const ActivationQuant& quant, const Shape& shape, int64_t m,
                            DType y_type) {
  ASSIGN_OR_RETURN(const QuantFormat format, QuantFormat::Parse(format_name));
  ASSIGN_OR_RETURN(const auto weights, bench.Weights(format, shape.n, shape.k));
  ASSIGN_OR_RETURN(const TensorView x, bench.Matrix(DType::kBF16, m, shape.k));
  ASSIGN_OR_RETURN(const TensorView y, bench.Matrix(y_type, m, shape.n));
  const double bytes = static_cast<double>(weights[0]->bytes() + m * shape.k * 2 +
                                           m * shape.n * static_cast<int64_t>(SizeOf(y_type)));
  return bench.Time(
      [&] {
        for (const PackedWeight* w : weights) bench.backend().Linear(*w, quant, x, nullptr, y);
      },
      static_cast<int64_t>(weights.size()), bytes,
      2.0 * static_cast<double>(m * shape.n * shape.k));
}

absl::StatusOr<json> Norm(Bench& bench, int64_t m, bool add) {
  const int64_t cols = bench.config().hidden;
  ASSIGN_OR_RETURN(const TensorView x, bench.Matrix(DType::kBF16, m, cols));
  ASSIGN_OR_RETURN(const TensorView residual, bench.Matrix(DType::kBF16, m, cols));
  ASSIGN_OR_RETURN(const TensorView out, bench.Matrix(DType::kBF16, m, cols));
  ASSIGN_OR_RETURN(const TensorView weight, bench.Matrix(DType::kF32, 1, cols));
  const auto* w = static_cast<const float*>(weight.data);
  return bench.Time(
      [&] {
        if (add) {
          bench.backend().AddRmsNorm(residual, x, w, 1e-5f, out);
        } else {
          bench.backend().RmsNorm(x, w, 1e-5f, out);
        }
      },
      1, static_cast<double>(m * cols * 2 * (add ? 4 : 2) + cols * 4));
}

absl::StatusOr<json> Gated(Bench& bench, int64_t m) {
  const int64_t cols = bench.config().intermediate;
  ASSIGN_OR_RETURN(const TensorView gate_up, bench.Matrix(DType::kBF16, m, 2 * cols));
  ASSIGN_OR_RETURN(const TensorView out, bench.Matrix(DType::kBF16, m, cols));
  return bench.Time([&] { bench.backend().GatedActivation(gate_up, Activation::kSilu, out); }, 1,
                    static_cast<double>(m * cols * 2 * 3));
}

/// K, V and the arrays of `batch` sequences of `context` tokens, of which the last `rows` are new.
struct Cache {
  std::vector<KvLayer> layers;  // rotated
  std::vector<Buffer> buffers;
  AttentionBatch batch;
  AttentionSpec spec;
};

absl::StatusOr<Cache> MakeCache(Bench& bench, int64_t batch, int64_t context, int64_t rows) {
  constexpr int32_t kBlock = 16;
  const Config& c = bench.config();
  const auto blocks = static_cast<int32_t>((context + kBlock - 1) / kBlock);
  Cache cache;
  std::vector<int32_t> positions, slots, seq_of_row, tables(static_cast<size_t>(batch * blocks));
  for (int32_t s = 0; s < batch; ++s) {
    for (int32_t b = 0; b < blocks; ++b) {  // the blocks of the sequences interleave, as they do
      tables[static_cast<size_t>(s * blocks + b)] = 1 + static_cast<int32_t>(batch) * b + s;
    }
    for (auto p = static_cast<int32_t>(context - rows); p < context; ++p) {
      positions.push_back(p);
      seq_of_row.push_back(s);
      slots.push_back(tables[static_cast<size_t>(s * blocks + p / kBlock)] * kBlock + p % kBlock);
    }
  }
  ASSIGN_OR_RETURN(cache.batch.positions, bench.Ints(positions));
  ASSIGN_OR_RETURN(cache.batch.slots, bench.Ints(slots));
  ASSIGN_OR_RETURN(cache.batch.seq_of_row, bench.Ints(seq_of_row));
  ASSIGN_OR_RETURN(cache.batch.block_tables, bench.Ints(tables));
  cache.batch.num_seqs = static_cast<int32_t>(batch);
  cache.batch.max_blocks = blocks;
  cache.spec = {static_cast<int32_t>(c.heads), static_cast<int32_t>(c.kv_heads),
                static_cast<int32_t>(c.head_dim), 1.0f / std::sqrt(static_cast<float>(c.head_dim))};
  const int32_t num_blocks = static_cast<int32_t>(batch) * blocks + 1;
  const int64_t half = int64_t{2} * num_blocks * kBlock * c.kv_heads * c.head_dim;
  for (int64_t bytes = 0;
       cache.layers.empty() || (bytes < c.rotated_bytes && cache.layers.size() < kMaxCopies);
       bytes += 2 * half) {
    KvLayer layer = {DType::kBF16,
                     nullptr,
                     nullptr,
                     num_blocks,
                     kBlock,
                     static_cast<int32_t>(c.kv_heads),
                     static_cast<int32_t>(c.head_dim)};
    for (void** data : {&layer.k, &layer.v}) {
      ASSIGN_OR_RETURN(Buffer buffer, bench.backend().Allocate(static_cast<size_t>(half),
                                                               MemoryComponent::kKvCache));
      *data = buffer.data();
      cache.buffers.push_back(std::move(buffer));
    }
    cache.layers.push_back(layer);
  }
  return cache;
}

absl::StatusOr<json> Attention(Bench& bench, int64_t batch, int64_t context, int64_t rows) {
  const Config& c = bench.config();
  ASSIGN_OR_RETURN(const Cache cache, MakeCache(bench, batch, context, rows));
  ASSIGN_OR_RETURN(const TensorView q,
                   bench.Matrix(DType::kBF16, batch * rows, c.heads * c.head_dim));
  ASSIGN_OR_RETURN(const TensorView out,
                   bench.Matrix(DType::kBF16, batch * rows, c.heads * c.head_dim));
  const double bytes = static_cast<double>(batch * context * c.kv_heads * c.head_dim * 2 * 2 +
                                           batch * rows * c.heads * c.head_dim * 2 * 2);
  const double pairs = static_cast<double>(batch * rows) *
                       (static_cast<double>(context - rows) + static_cast<double>(rows + 1) / 2);
  return bench.Time(
      [&] {
        for (const KvLayer& layer : cache.layers) {
          bench.backend().Attention(q, cache.spec, cache.batch, layer, out);
        }
      },
      static_cast<int64_t>(cache.layers.size()), bytes,
      4.0 * pairs * static_cast<double>(c.heads * c.head_dim));
}

absl::StatusOr<json> Rope(Bench& bench, int64_t m) {
  const Config& c = bench.config();
  ASSIGN_OR_RETURN(const Cache cache, MakeCache(bench, m, 32, 1));
  ASSIGN_OR_RETURN(const TensorView q, bench.Matrix(DType::kBF16, m, c.heads * c.head_dim));
  ASSIGN_OR_RETURN(const TensorView k, bench.Matrix(DType::kBF16, m, c.kv_heads * c.head_dim));
  ASSIGN_OR_RETURN(const TensorView v, bench.Matrix(DType::kBF16, m, c.kv_heads * c.head_dim));
  ASSIGN_OR_RETURN(const TensorView cos_sin, bench.Matrix(DType::kF32, 64, c.head_dim));
  const double bytes = static_cast<double>(m * c.head_dim * 2 * (2 * c.heads + 4 * c.kv_heads));
  return bench.Time(
      [&] {
        bench.backend().RopeAndStoreKv(q, k, v, static_cast<const float*>(cos_sin.data), cache.spec,
                                       cache.batch, cache.layers[0]);
      },
      1, bytes);
}

absl::StatusOr<json> Sampling(Bench& bench, int64_t m, float temperature) {
  ASSIGN_OR_RETURN(const TensorView logits, bench.Matrix(DType::kF32, m, bench.config().vocab));
  ASSIGN_OR_RETURN(const std::span<int32_t> sampled,
                   bench.Ints(std::vector<int32_t>(static_cast<size_t>(m), 0)));
  SampleParams one;
  one.temperature = temperature;
  if (temperature > 0) one.top_p = 0.9f;
  const std::vector<SampleParams> params(static_cast<size_t>(m), one);
  std::vector<SampleResult> results(static_cast<size_t>(m));
  return bench.Time([&] { bench.backend().Sample(logits, params, sampled, results); }, 1,
                    static_cast<double>(m * bench.config().vocab * 4));
}

std::vector<Item> Items(Bench& bench) {
  const Config& c = bench.config();
  std::vector<Item> items;
  const auto add = [&](std::string name, std::function<absl::StatusOr<json>()> run,
                       Determinism determinism = Determinism::kDefault) {
    items.push_back({std::move(name), [&bench, determinism, run = std::move(run)] {
                       bench.Use(determinism);
                       return run();
                     }});
  };
  using Kind = ActivationQuant::Kind;
  const struct {
    const char* format;
    bool all_shapes;
    const char* activations;  // of the item's name
    ActivationQuant quant = {};
    Determinism determinism = Determinism::kDefault;
  } linears[] = {
      {"nf4.flat64.nested", true, ""},
      {"nf4.flat64.f32", true, ""},
      {"fp4.flat64.f32", false, ""},
      {"int8.row.absmax", true, "", {.kind = Kind::kInt8Outlier, .threshold = 6.0f}},
      {"bf16", true, ""},
      {"int4.group128.bf16", true, ""},          // GPTQ, compressed-tensors
      {"uint4.group128.f16.zero_u8", true, ""},  // AWQ
      {"int4.group128.f16.reordered", false, ""},
      {"int4.group64.bf16.offset_bf16", false, ""},  // torchao
      {"uint4.flat64.f32.zero_f32", false, ""},      // HQQ in f32; not tuned
      {"uint2.group64.f16.zero_u8", false, ""},      // not tuned
      {"int8.group128.bf16", true, ""},              // GPTQ, compressed-tensors
      {"uint8.group128.f16.zero_u8", false, ""},     // GPTQ
      {"int8.row.bf16", false, ""},                  // torchao
      {"e4m3.tile128x128.f32", true, "+fp8_group128", {.kind = Kind::kFp8Group, .group = 128}},
      {"e4m3.row.f32", true, "+fp8_token", {.kind = Kind::kFp8Token}},
      {"e2m1.group16.e4m3", false, ""},  // nvfp4; not tuned
      {"int8.row.f32", true, "+int8_token", {.kind = Kind::kInt8Token}},
      {"nf4.flat64.nested", false, "+batch_invariant", {}, Determinism::kBatchInvariant},
      {"bf16", false, "+batch_invariant", {}, Determinism::kBatchInvariant},
  };
  for (const auto& linear : linears) {
    for (const Shape& shape : c.linears) {
      if (!linear.all_shapes && shape.n != c.linears[0].n) continue;
      for (const int64_t m : c.rows) {
        add(
            fmt::format("linear/{}{}/{}/m:{}", linear.format, linear.activations, shape.name, m),
            [&bench, linear, shape, m] {
              return Linear(bench, linear.format, linear.quant, shape, m, DType::kBF16);
            },
            linear.determinism);
      }
    }
  }
  const Shape head = {"head", c.vocab, c.hidden};
  for (const int64_t m : c.batches) {
    add(fmt::format("linear/bf16/head/m:{}", m),
        [&bench, head, m] { return Linear(bench, "bf16", {}, head, m, DType::kF32); });
  }
  for (const int64_t m : c.op_rows) {
    add(fmt::format("rms_norm/m:{}", m), [&bench, m] { return Norm(bench, m, false); });
    add(fmt::format("add_rms_norm/m:{}", m), [&bench, m] { return Norm(bench, m, true); });
    add(fmt::format("gated_silu/m:{}", m), [&bench, m] { return Gated(bench, m); });
    add(fmt::format("rope_and_store_kv/m:{}", m), [&bench, m] { return Rope(bench, m); });
  }
  for (const int64_t batch : c.batches) {
    for (const int64_t context : c.contexts) {
      add(fmt::format("attention/decode/batch:{}/context:{}", batch, context),
          [&bench, batch, context] { return Attention(bench, batch, context, 1); });
    }
    add(fmt::format("sample/greedy/m:{}", batch),
        [&bench, batch] { return Sampling(bench, batch, 0.0f); });
    add(fmt::format("sample/top_p/m:{}", batch),
        [&bench, batch] { return Sampling(bench, batch, 0.8f); });
  }
  for (const int64_t rows : c.prefills) {
    add(fmt::format("attention/prefill/rows:{}", rows),
        [&bench, rows] { return Attention(bench, 1, rows, rows); });
  }
  return items;
}

}  // namespace

absl::StatusOr<Outcome> RunBench(const StageOptions& options) {
  ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
  ASSIGN_OR_RETURN(ResultFile file, ResultFile::Open(options.out, DeviceName(*backend), "bench",
                                                     options.quick, options.fresh));
  ASSIGN_OR_RETURN(const auto invariant,
                   MakeBackend(options.backend, Determinism::kBatchInvariant));
  Bench bench(*backend, *invariant, options.quick ? QuickConfig() : FullConfig());
  return RunItems(options, file, Items(bench));
}

}  // namespace quantd::gpu

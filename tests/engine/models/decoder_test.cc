// The decoder against a direct transcription of LlamaForCausalLM in double precision, on generated
// models with what the golden fixtures do not have: biases, tied embeddings, odd sizes, groups that
// cannot be fused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "engine/models/rope.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::HostBackends;
using testing_support::MakeBackend;
using testing_support::ModelRunner;
using testing_support::OwnedTensors;
using testing_support::ReadTensors;
using testing_support::Rms;
using testing_support::TempDir;
using testing_support::TinyModelOptions;
using testing_support::WriteTinyModel;

using Matrix = std::vector<std::vector<double>>;

// LlamaForCausalLM written out, for float32 folders.
class DirectLlama {
 public:
  DirectLlama(const TinyModelOptions& o, OwnedTensors tensors)
      : o_(o), tensors_(std::move(tensors)) {}

  std::vector<float> Logits(const std::vector<int32_t>& ids) const {
    Matrix x;
    const std::vector<float> table = Values("model.embed_tokens.weight");
    for (const int32_t id : ids) {
      const auto row = table.begin() + static_cast<long>(id) * o_.hidden_size;
      x.emplace_back(row, row + o_.hidden_size);
    }
    for (int64_t i = 0; i < o_.num_layers; ++i) {
      const std::string layer = "model.layers." + std::to_string(i) + ".";
      Add(x, Attention(Norm(x, layer + "input_layernorm"), layer + "self_attn."));
      const Matrix h = Norm(x, layer + "post_attention_layernorm");
      Matrix gate = Linear(h, layer + "mlp.gate_proj");
      const Matrix up = Linear(h, layer + "mlp.up_proj");
      for (size_t r = 0; r < gate.size(); ++r) {
        for (size_t c = 0; c < gate[r].size(); ++c)
          gate[r][c] *= up[r][c] / (1.0 + std::exp(-gate[r][c]));
      }
      Add(x, Linear(gate, layer + "mlp.down_proj"));
    }
    const Matrix logits =
        Linear(Norm(x, "model.norm"), o_.tie_word_embeddings ? "model.embed_tokens" : "lm_head");
    std::vector<float> out;
    for (const auto& row : logits) out.insert(out.end(), row.begin(), row.end());
    return out;
  }

 private:
  std::vector<float> Values(const std::string& name) const {
    const std::string& bytes = tensors_.at(name).bytes;
    std::vector<float> out(bytes.size() / 4);
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  }
  Matrix Linear(const Matrix& x, const std::string& module) const {
    const std::vector<float> w = Values(module + ".weight");
    const std::vector<float> bias =
        tensors_.count(module + ".bias") > 0 ? Values(module + ".bias") : std::vector<float>();
    const size_t k = x[0].size(), n = w.size() / k;
    Matrix y(x.size(), std::vector<double>(n));
    for (size_t r = 0; r < x.size(); ++r) {
      for (size_t i = 0; i < n; ++i) {
        y[r][i] = std::inner_product(x[r].begin(), x[r].end(), w.begin() + static_cast<long>(i * k),
                                     bias.empty() ? 0.0 : static_cast<double>(bias[i]));
      }
    }
    return y;
  }
  Matrix Norm(Matrix x, const std::string& module) const {
    const std::vector<float> w = Values(module + ".weight");
    for (auto& row : x) {
      const double square = std::inner_product(row.begin(), row.end(), row.begin(), 0.0);
      const double scale = 1.0 / std::sqrt(square / static_cast<double>(row.size()) + 1e-5);
      for (size_t c = 0; c < row.size(); ++c) row[c] *= scale * static_cast<double>(w[c]);
    }
    return x;
  }
  static void Add(Matrix& x, const Matrix& y) {
    for (size_t r = 0; r < x.size(); ++r) {
      for (size_t c = 0; c < x[r].size(); ++c) x[r][c] += y[r][c];
    }
  }
  void Rotate(Matrix& x) const {
    const size_t d = static_cast<size_t>(o_.head_dim);
    for (size_t p = 0; p < x.size(); ++p) {
      for (size_t head = 0; head < x[p].size(); head += d) {
        for (size_t i = 0; i < d / 2; ++i) {
          const double angle =
              static_cast<double>(p) *
              std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(d));
          double& a = x[p][head + i];
          double& b = x[p][head + i + d / 2];
          const double rotated = a * std::cos(angle) - b * std::sin(angle);
          b = b * std::cos(angle) + a * std::sin(angle);
          a = rotated;
        }
      }
    }
  }
  Matrix Attention(const Matrix& x, const std::string& prefix) const {
    Matrix q = Linear(x, prefix + "q_proj"), k = Linear(x, prefix + "k_proj");
    const Matrix v = Linear(x, prefix + "v_proj");
    Rotate(q);
    Rotate(k);
    const size_t d = static_cast<size_t>(o_.head_dim);
    const size_t shared = static_cast<size_t>(o_.num_heads / o_.num_kv_heads);
    Matrix out(x.size(), std::vector<double>(q[0].size(), 0.0));
    for (size_t p = 0; p < x.size(); ++p) {
      for (size_t h = 0; h < static_cast<size_t>(o_.num_heads); ++h) {
        const size_t at = h * d, kv = h / shared * d;
        std::vector<double> weight(p + 1);
        double sum = 0;
        for (size_t j = 0; j <= p; ++j) {
          double dot = 0;
          for (size_t i = 0; i < d; ++i) dot += q[p][at + i] * k[j][kv + i];
          sum += weight[j] = std::exp(dot / std::sqrt(static_cast<double>(d)));
        }
        for (size_t j = 0; j <= p; ++j) {
          for (size_t i = 0; i < d; ++i) out[p][at + i] += weight[j] / sum * v[j][kv + i];
        }
      }
    }
    return Linear(out, prefix + "o_proj");
  }

  TinyModelOptions o_;
  OwnedTensors tensors_;
};

std::vector<int32_t> Prompt(int64_t vocab, size_t length) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < length; ++i)
    ids.push_back(static_cast<int32_t>((i * 37 + 11) % static_cast<size_t>(vocab)));
  return ids;
}

LoadOptions LargerOptionsFor(const std::filesystem::path& dir, const std::string& yaml) {
  LoadOptions options;
  options.model_dir = dir;
  options.max_rows = 32;
  options.max_logit_rows = 32;
  auto profile = ParseProfile(yaml, "test.yaml");
  EXPECT_TRUE(profile.ok()) << profile.status();
  options.profile = *profile;
  return options;
}

struct Variant {
  const char* name;
  TinyModelOptions options;
};

std::vector<Variant> Variants() {
  TinyModelOptions plain;
  plain.dtype = DType::kF32;
  TinyModelOptions biases = plain;
  biases.attention_bias = biases.mlp_bias = true;
  TinyModelOptions tied = plain;
  tied.tie_word_embeddings = true;
  TinyModelOptions odd = plain;
  odd.vocab_size = 61;
  odd.hidden_size = 30;
  odd.intermediate_size = 45;
  odd.num_heads = 3;
  odd.num_kv_heads = 1;
  odd.head_dim = 6;
  odd.num_layers = 3;
  return {{"plain", plain}, {"biases", biases}, {"tied", tied}, {"odd", odd}};
}

TEST(Decoder, AgreesWithLlamaWrittenOutInDoublePrecision) {
  for (const Variant& v : Variants()) {
    TempDir dir;
    WriteTinyModel(dir.path(), v.options);
    const std::vector<int32_t> ids = Prompt(v.options.vocab_size, 20);
    const DirectLlama direct(v.options, ReadTensors(dir.path() / "model.safetensors"));
    const std::vector<float> expected = direct.Logits(ids);
    for (const std::string& name : HostBackends()) {
      const auto backend = MakeBackend(name);
      auto loaded = LoadModel(*backend, LargerOptionsFor(dir.path(), "dtype: float32\n"));
      ASSERT_TRUE(loaded.ok()) << v.name << " on " << name << ": " << loaded.status();
      ModelRunner runner(*backend, std::move(*loaded));
      EXPECT_LE(Rms(runner.Forward(ids), expected), 2e-5) << v.name << " on " << name;
    }
  }
}

// One module of a fused group in another format splits the group; the numbers stay the same.
TEST(Decoder, GroupsThatCannotBeFusedGiveTheSameLogits) {
  TinyModelOptions o;  // bf16 weights: exact in float32 and in bfloat16
  o.attention_bias = o.mlp_bias = true;
  TempDir dir;
  WriteTinyModel(dir.path(), o);
  const std::vector<int32_t> ids = Prompt(o.vocab_size, 20);
  const std::string split =
      "dtype: float32\n"
      "overrides:\n"
      "  - {match: k_proj, dtype: bfloat16, quantization: {quant_method: none}}\n"
      "  - {match: 're:.*\\.gate_proj', dtype: bfloat16, quantization: {quant_method: none}}\n";
  for (const std::string& name : HostBackends()) {
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<size_t>> segments;
    for (const std::string& yaml : {std::string("dtype: float32\n"), split}) {
      const auto backend = MakeBackend(name);
      auto loaded = LoadModel(*backend, LargerOptionsFor(dir.path(), yaml));
      ASSERT_TRUE(loaded.ok()) << name << ": " << loaded.status();
      ModelRunner runner(*backend, std::move(*loaded));
      std::vector<size_t> seen;
      const LinearObserver observer = [&](const PackedWeight& w, const TensorView& x,
                                          const TensorView& y) {
        EXPECT_EQ(x.cols, w.k());
        EXPECT_EQ(y.cols, w.n());
        seen.push_back(w.segments().size());
      };
      logits.push_back(runner.Forward(ids, false, &observer));
      segments.push_back(seen);
    }
    EXPECT_THAT(segments[0], ::testing::ElementsAre(3, 1, 2, 1, 3, 1, 2, 1, 1)) << name;
    EXPECT_THAT(segments[1], ::testing::ElementsAre(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1))
        << name;
    EXPECT_LE(Rms(logits[0], logits[1]), 2e-5) << name;
  }
}

// A tied head shares the embedding's bytes, unless an override quantizes it by name.
TEST(Decoder, TiedHeadIsQuantizedOnlyWhenAskedByName) {
  TinyModelOptions o;
  o.tie_word_embeddings = true;
  TempDir dir;
  WriteTinyModel(dir.path(), o);
  const std::string nf4 =
      "quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4, bnb_4bit_compute_dtype: "
      "bfloat16}\n";
  const std::string override_head =
      nf4 + "overrides: [{match: lm_head, quantization: {load_in_8bit: true}}]\n";
  const auto backend = MakeBackend("ref");
  auto shared = LoadModel(*backend, LargerOptionsFor(dir.path(), nf4));
  ASSERT_TRUE(shared.ok()) << shared.status();
  EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kHead), 0);
  const int64_t embedding = backend->memory().Bytes(MemoryComponent::kEmbedding);
  EXPECT_EQ(embedding, 64 * 32 * 2);
  shared = absl::UnknownError("released");
  auto own = LoadModel(*backend, LargerOptionsFor(dir.path(), override_head));
  ASSERT_TRUE(own.ok()) << own.status();
  EXPECT_GE(backend->memory().Bytes(MemoryComponent::kHead), 64 * 32);
  EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kEmbedding), embedding);
  ModelRunner runner(*backend, std::move(*own));
  EXPECT_EQ(runner.Forward(Prompt(o.vocab_size, 4)).size(), 4u * 64u);
}

TEST(Decoder, LogitsAreOnlyComputedForTheRowsAskedFor) {
  TempDir dir;
  WriteTinyModel(dir.path());
  const auto backend = MakeBackend("ref");
  LoadOptions options = LargerOptionsFor(dir.path(), "dtype: float32\n");
  auto loaded = LoadModel(*backend, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ModelRunner runner(*backend, std::move(*loaded));
  const std::vector<int32_t> ids = Prompt(64, 9);
  const std::vector<float> all = runner.Forward(ids);
  runner.Reset();
  int64_t head_rows = 0;
  const LinearObserver observer = [&](const PackedWeight& w, const TensorView& x,
                                      const TensorView&) {
    if (w.segments()[0].module == "lm_head") head_rows = x.rows;
  };
  const std::vector<float> last = runner.Forward(ids, true, &observer);
  EXPECT_EQ(head_rows, 1);
  EXPECT_EQ(last, std::vector<float>(all.end() - 64, all.end()));
}

TEST(Decoder, ForwardAllocatesNothing) {
  TempDir dir;
  WriteTinyModel(dir.path());
  for (const std::string& name : HostBackends()) {
    const auto backend = MakeBackend(name);
    auto loaded = LoadModel(*backend, LargerOptionsFor(dir.path(), "dtype: bfloat16\n"));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ModelRunner runner(*backend, std::move(*loaded));
    for (const MemoryComponent c :
         {MemoryComponent::kActivations, MemoryComponent::kWeights, MemoryComponent::kNorms}) {
      const int64_t before = backend->memory().Bytes(c);
      runner.Reset();
      runner.Forward(Prompt(64, 32));
      EXPECT_EQ(backend->memory().Bytes(c), before) << name << " " << ToString(c);
    }
  }
}

TEST(Rope, TableHoldsCosinesThenSinesOfEachPosition) {
  const RopeSpec rope;
  const std::vector<float> table = RopeTable(rope, 8, 100);
  ASSERT_EQ(table.size(), 800u);
  for (size_t p : {0u, 1u, 99u}) {
    for (size_t i = 0; i < 4; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(10000.0, -static_cast<double>(i) / 4.0);
      EXPECT_NEAR(table[p * 8 + i], std::cos(angle), 1e-5);
      EXPECT_NEAR(table[p * 8 + 4 + i], std::sin(angle), 1e-5);
    }
  }
}

// transformers' _compute_llama3_parameters: long wavelengths divided by the factor, short ones
// kept.
TEST(Rope, Llama3ScalingStretchesLongWavelengthsOnly) {
  RopeSpec rope;
  rope.theta = 500000.0;
  const std::vector<float> plain = RopeFrequencies(rope, 128, 100);
  rope.type = RopeSpec::Type::kLlama3;
  rope.factor = 8.0;
  rope.low_freq_factor = 1.0;
  rope.high_freq_factor = 4.0;
  rope.original_max_position_embeddings = 8192.0;
  const std::vector<float> scaled = RopeFrequencies(rope, 128, 100);
  int kept = 0, divided = 0, between = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const double wavelength = 2 * M_PI / static_cast<double>(plain[i]);
    if (wavelength < 2048.0) {
      EXPECT_EQ(scaled[i], plain[i]);
      ++kept;
    } else if (wavelength > 8192.0) {
      EXPECT_EQ(scaled[i], plain[i] / 8.0f);
      ++divided;
    } else {
      EXPECT_LT(scaled[i], plain[i]);
      EXPECT_GT(scaled[i], plain[i] / 8.0f);
      ++between;
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(divided, 0);
  EXPECT_GT(between, 0);
}

TEST(KvCache, TakesTwoHalvesALayerAndRefusesWhatCannotBeUsed) {
  DecoderSpec spec;
  spec.num_layers = 3;
  spec.num_kv_heads = 2;
  spec.head_dim = 8;
  EXPECT_EQ(KvCache::BytesPerToken(spec, DType::kBF16), 3 * 2 * 2 * 8 * 2);
  const auto backend = MakeBackend("ref");
  auto cache = KvCache::Create(*backend, spec, DType::kBF16, 5, 4);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kKvCache),
            5 * 4 * KvCache::BytesPerToken(spec, DType::kBF16));
  EXPECT_NE((*cache)->layer(0).k, (*cache)->layer(0).v);
  EXPECT_EQ((*cache)->layer(2).num_blocks, 5);
  EXPECT_EQ((*cache)->layer(0).k_scales, nullptr);
  for (const auto& [blocks, size] :
       {std::pair(1, 16), std::pair(4, 0), std::pair(1 << 20, 1 << 20)}) {
    EXPECT_TRUE(absl::IsInvalidArgument(
        KvCache::Create(*backend, spec, DType::kBF16, blocks, size).status()));
  }
}

TEST(KvCache, OfInt8TakesAByteAnElementAndAScaleAHead) {
  DecoderSpec spec;
  spec.num_layers = 3;
  spec.num_kv_heads = 2;
  spec.head_dim = 64;
  const int64_t bytes = KvCache::BytesPerToken(spec, DType::kI8);
  EXPECT_EQ(bytes * 2 * 64, KvCache::BytesPerToken(spec, DType::kBF16) * (64 + 4));
  const auto backend = MakeBackend("ref");
  auto cache = KvCache::Create(*backend, spec, DType::kI8, 5, 4);
  ASSERT_TRUE(cache.ok()) << cache.status();
  EXPECT_EQ(backend->memory().Bytes(MemoryComponent::kKvCache), 5 * 4 * bytes);
  const KvLayer& layer = (*cache)->layer(2);
  EXPECT_EQ(layer.dtype, DType::kI8);
  EXPECT_TRUE(layer.k_scales != nullptr && layer.v_scales != nullptr);
  EXPECT_NE(layer.k_scales, layer.v_scales);
}

}  // namespace
}  // namespace quantd

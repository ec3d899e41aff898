// Test helpers: temporary folders, and a generated Llama folder (config.json and model.safetensors)
// of any dimensions with seeded weights. Header-only, so that tests of the engine can use it too.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "engine/weights/safetensors.h"
#include "kernels/quant/float_types.h"

namespace quantd::testing_support {

/// A folder that is removed with its contents.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "quantd_test_XXXXXX").string();
    EXPECT_NE(::mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

inline std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

inline void WriteFile(const std::filesystem::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out << text;
  ASSERT_TRUE(out.good()) << path;
}

struct TinyModelOptions {
  int64_t vocab_size = 64;
  int64_t hidden_size = 32;
  int64_t intermediate_size = 48;
  int64_t num_layers = 2;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 2;
  int64_t head_dim = 8;
  int64_t max_positions = 128;
  bool tie_word_embeddings = false;
  bool attention_bias = false;
  bool mlp_bias = false;
  DType dtype = DType::kBF16;
  uint32_t seed = 1;
  float scale = 0.3f;        // standard deviation of the weights: logits spread over several units
  std::string extra_config;  // more members of config.json, each with a comma in front
  std::vector<int32_t> eos_token_ids = {2};
};

/// One tensor of a folder to be written.
struct OwnedTensor {
  StoredDType dtype = StoredDType::kF32;
  std::vector<int64_t> shape;
  std::string bytes;
};
using OwnedTensors = std::map<std::string, OwnedTensor>;

inline OwnedTensor FloatTensor(const std::vector<float>& values, std::vector<int64_t> shape,
                               DType dtype) {
  OwnedTensor t{ToStoredDType(dtype), std::move(shape), {}};
  for (const float v : values) {
    if (dtype == DType::kF32) t.bytes.append(reinterpret_cast<const char*>(&v), 4);
    const BF16 b(v);
    if (dtype == DType::kBF16) t.bytes.append(reinterpret_cast<const char*>(&b), 2);
    const F16 h(v);
    if (dtype == DType::kF16) t.bytes.append(reinterpret_cast<const char*>(&h), 2);
  }
  return t;
}

inline void WriteTensors(const std::filesystem::path& file, const OwnedTensors& tensors,
                         const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  std::vector<NamedTensor> named;
  for (const auto& [name, t] : tensors) {
    named.push_back(
        {name, t.dtype, t.shape, std::as_bytes(std::span(t.bytes.data(), t.bytes.size()))});
  }
  const absl::Status status = WriteSafetensors(file, named, metadata);
  ASSERT_TRUE(status.ok()) << status;
}

inline OwnedTensors ReadTensors(const std::filesystem::path& file) {
  OwnedTensors out;
  auto checkpoint = Checkpoint::OpenFile(file);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return out;
  for (const auto& [name, t] : (*checkpoint)->tensors()) {
    out[name] = {t.dtype, t.shape,
                 std::string(reinterpret_cast<const char*>(t.data.data()), t.data.size())};
  }
  return out;
}

inline OwnedTensors TinyTensors(const TinyModelOptions& o) {
  std::mt19937 random(o.seed);
  // Box-Muller on raw bits: std::normal_distribution may differ between libraries.
  const auto normal = [&] {
    const double u = (static_cast<double>(random()) + 1.0) / 4294967297.0;
    const double v = static_cast<double>(random()) / 4294967296.0;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v));
  };
  OwnedTensors tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean,
                       float deviation) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    std::vector<float> values(static_cast<size_t>(count));
    for (float& v : values) v = mean + deviation * normal();
    tensors[name] = FloatTensor(values, std::move(shape), o.dtype);
  };
  const int64_t q_rows = o.num_heads * o.head_dim;
  const int64_t kv_rows = o.num_kv_heads * o.head_dim;
  const auto linear = [&](const std::string& module, int64_t n, int64_t k, bool bias) {
    add(module + ".weight", {n, k}, 0.0f, o.scale);
    if (bias) add(module + ".bias", {n}, 0.0f, 0.2f);
  };
  add("model.embed_tokens.weight", {o.vocab_size, o.hidden_size}, 0.0f, 1.0f);
  for (int64_t i = 0; i < o.num_layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    linear(layer + "self_attn.q_proj", q_rows, o.hidden_size, o.attention_bias);
    linear(layer + "self_attn.k_proj", kv_rows, o.hidden_size, o.attention_bias);
    linear(layer + "self_attn.v_proj", kv_rows, o.hidden_size, o.attention_bias);
    linear(layer + "self_attn.o_proj", o.hidden_size, q_rows, o.attention_bias);
    linear(layer + "mlp.gate_proj", o.intermediate_size, o.hidden_size, o.mlp_bias);
    linear(layer + "mlp.up_proj", o.intermediate_size, o.hidden_size, o.mlp_bias);
    linear(layer + "mlp.down_proj", o.hidden_size, o.intermediate_size, o.mlp_bias);
    add(layer + "input_layernorm.weight", {o.hidden_size}, 1.0f, 0.1f);
    add(layer + "post_attention_layernorm.weight", {o.hidden_size}, 1.0f, 0.1f);
  }
  add("model.norm.weight", {o.hidden_size}, 1.0f, 0.1f);
  if (!o.tie_word_embeddings) linear("lm_head", o.vocab_size, o.hidden_size, false);
  return tensors;
}

inline std::string TinyConfig(const TinyModelOptions& o) {
  std::string eos;
  for (const int32_t id : o.eos_token_ids) eos += (eos.empty() ? "" : ", ") + std::to_string(id);
  return fmt::format(R"({{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
 "vocab_size": {}, "hidden_size": {}, "intermediate_size": {}, "num_hidden_layers": {},
 "num_attention_heads": {}, "num_key_value_heads": {}, "head_dim": {},
 "max_position_embeddings": {},
 "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": {},
 "attention_bias": {}, "mlp_bias": {},
 "rope_parameters": {{"rope_type": "default", "rope_theta": 10000.0}}, "dtype": "{}",
 "bos_token_id": 1, "eos_token_id": [{}]{}}})",
                     o.vocab_size, o.hidden_size, o.intermediate_size, o.num_layers, o.num_heads,
                     o.num_kv_heads, o.head_dim, o.max_positions, o.tie_word_embeddings,
                     o.attention_bias, o.mlp_bias, ToString(o.dtype), eos, o.extra_config);
}

/// Writes config.json and model.safetensors into `dir`, which exists.
inline void WriteTinyModel(const std::filesystem::path& dir, const TinyModelOptions& options = {}) {
  WriteFile(dir / "config.json", TinyConfig(options));
  WriteTensors(dir / "model.safetensors", TinyTensors(options));
}

}  // namespace quantd::testing_support

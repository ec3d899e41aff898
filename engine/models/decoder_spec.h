// DecoderSpec: all that distinguishes one decoder-only transformer from another, read from
// config.json in both of transformers' spellings (4: rope_theta, rope_scaling, torch_dtype; 5:
// rope_parameters, dtype). One file per architecture turns a config into a spec; the decoder stack
// runs specs only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quantd {

struct RopeSpec {
  enum class Type : uint8_t { kDefault, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  // kLlama3 (Llama 3.1's frequency scaling, transformers' _compute_llama3_parameters):
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  double original_max_position_embeddings = 8192.0;
};

struct DecoderSpec {
  std::string architecture;  // "LlamaForCausalLM"
  std::string model_type;    // "llama"
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t max_position_embeddings = 0;
  float norm_eps = 1e-5f;
  Activation activation = Activation::kSilu;
  RopeSpec rope;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v and o have biases
  bool mlp_bias = false;
  DType dtype = DType::kBF16;  // of the checkpoint's plain tensors
  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> bos_token_ids;
};

/// Sampling defaults of generation_config.json; what is absent there keeps these values.
struct GenerationDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;
  float min_p = 0.0f;
  std::vector<int32_t> eos_token_ids;  // added to the spec's
};

/// Reads `dir`/config.json. NOT_FOUND, DATA_LOSS (not JSON, values that contradict each other, all
/// faults in one message) or UNIMPLEMENTED (architecture, rope type or activation by name, with
/// what is supported).
absl::StatusOr<DecoderSpec> ReadDecoderSpec(const std::filesystem::path& dir);
/// The same for a config given as text; `source` names it in messages.
absl::StatusOr<DecoderSpec> ParseDecoderSpec(const std::string& json, const std::string& source);
/// Reads `dir`/generation_config.json; defaults when there is none.
absl::StatusOr<GenerationDefaults> ReadGenerationDefaults(const std::filesystem::path& dir);

}  // namespace quantd

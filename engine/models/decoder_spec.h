// DecoderSpec: all that distinguishes one decoder-only transformer from another, read from
// config.json in both of transformers' spellings (4: rope_theta, rope_scaling, torch_dtype; 5:
// rope_parameters, dtype). One file per architecture turns a config into a spec; the decoder stack
// runs specs only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"

namespace quantd {

/// Rotary embedding by its names in transformers (ROPE_INIT_FUNCTIONS of modeling_rope_utils.py).
struct RopeSpec {
  // kDynamic: as kDefault up to max_position_embeddings, behind which quantd does not go: from
  // there on transformers' frequencies would depend on how long a sequence has become. kLongRope:
  // the short factors where no context is longer than the original, else the long ones, for all
  // positions of all sequences.
  enum class Type : uint8_t { kDefault, kLinear, kDynamic, kLlama3, kYarn, kLongRope };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;  // share of a head, from its beginning, that is rotated
  double factor = 1.0;                 // kLinear, kLlama3, kYarn
  double original_max_position_embeddings = 8192.0;  // kLlama3, kYarn, kLongRope
  double low_freq_factor = 1.0;                      // kLlama3
  double high_freq_factor = 4.0;                     // kLlama3
  double beta_fast = 32.0;                           // kYarn
  double beta_slow = 1.0;                            // kYarn
  bool truncate = true;                              // kYarn: bounds of the ramp are whole numbers
  double attention_factor = 1.0;     // kYarn, kLongRope: cosines and sines times this
  std::vector<double> short_factor;  // kLongRope: [rotated elements / 2]
  std::vector<double> long_factor;   // kLongRope: as well
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
  std::optional<RopeSpec> sliding_rope;  // of the layers with a window, if it is another
  std::vector<int32_t> windows;  // [num_layers] keys that a row of a layer sees, itself the last of
                                 // them; 0: all before it. Empty: 0 everywhere
  float attention_scale = 0.0f;  // of q k^T; 0: 1 / sqrt(head_dim)
  float attention_softcap = 0.0f;  // s becomes cap * tanh(s / cap); 0: none
  float logit_softcap = 0.0f;      // as well, of the logits
  float embedding_scale = 1.0f;    // rounded to the compute dtype before it multiplies
  float norm_offset = 0.0f;        // norms are stored less this: Gemma's are distances from 1
  bool qk_norm = false;            // heads of q and k are normed before rope
  bool branch_norms = false;       // what attention and mlp add to the stream is normed before
  bool tie_word_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  DType dtype = DType::kBF16;  // of the checkpoint's plain tensors
  std::vector<int32_t> eos_token_ids;
  std::vector<int32_t> bos_token_ids;

  /// Elements of a head that rope rotates.
  int64_t rotary_dim() const {
    return static_cast<int64_t>(static_cast<double>(head_dim) * rope.partial_rotary_factor);
  }
  int32_t window(int64_t layer) const {
    return windows.empty() ? 0 : windows[static_cast<size_t>(layer)];
  }
};

/// Sampling defaults of generation_config.json; what is absent there keeps these values.
struct GenerationDefaults {
  float temperature = 1.0f;
  float top_p = 1.0f;
  int32_t top_k = 0;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
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

#include "engine/models/family.h"

#include <algorithm>
#include <cmath>

#include "kernels/status.h"

namespace quantd {
namespace {

// Bounds on what is read before any tensor confirms it: far above every known model, low enough
// that products of three of them fit in 63 bits and lists of modules in memory.
constexpr int64_t kMaxWidth = 1 << 20;
constexpr int64_t kMaxVocab = 1 << 24;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxHeadDim = 1024;
constexpr int64_t kMaxPositions = 1 << 24;

}  // namespace

void ReadSizes(ConfigReader& config, const ConfigDefaults& defaults, DecoderSpec& spec) {
  FaultList& faults = config.faults();
  spec.vocab_size = config.Int("vocab_size", 1, kMaxVocab);
  spec.hidden_size = config.Int("hidden_size", 1, kMaxWidth);
  spec.intermediate_size = config.Int("intermediate_size", 1, kMaxWidth);
  spec.num_layers = config.Int("num_hidden_layers", 1, kMaxLayers);
  spec.num_heads = config.Int("num_attention_heads", 1, kMaxHeads);
  spec.num_kv_heads = config.Int("num_key_value_heads", 1, kMaxHeads, spec.num_heads);
  const bool derived = !config.Has("head_dim") && defaults.head_dim == 0;
  if (derived && spec.hidden_size % spec.num_heads != 0) {
    faults.Add(
        "hidden_size: {} is not a multiple of num_attention_heads {}, and there is no head_dim",
        spec.hidden_size, spec.num_heads);
  }
  spec.head_dim = config.Int("head_dim", 1, kMaxHeadDim,
                             derived ? spec.hidden_size / spec.num_heads : defaults.head_dim);
  if (spec.head_dim < 1 || spec.head_dim > kMaxHeadDim) {  // when it was derived
    faults.Add("head_dim: {} is not between 1 and {}", spec.head_dim, kMaxHeadDim);
  }
  spec.max_position_embeddings =
      config.Int("max_position_embeddings", 1, kMaxPositions, defaults.max_position_embeddings);
  spec.norm_eps = static_cast<float>(config.Number("rms_norm_eps", 0.0, 1.0, defaults.norm_eps));
  spec.activation = config.HiddenActivation(defaults.activation_key, defaults.activation);
  spec.tie_word_embeddings = config.Bool("tie_word_embeddings", defaults.tie_word_embeddings);
  spec.dtype = config.CheckpointDType();
  spec.eos_token_ids = config.TokenIds("eos_token_id", spec.vocab_size);
  spec.bos_token_ids = config.TokenIds("bos_token_id", spec.vocab_size);
}

void ReadRope(ConfigReader& config, const ConfigReader::RopeKeys& keys, DecoderSpec& spec) {
  spec.rope = config.Rope(spec.max_position_embeddings, keys);
  if (spec.rope.type != RopeSpec::Type::kYarn) return;
  const double context = spec.rope.original_max_position_embeddings * spec.rope.factor;
  if (context > static_cast<double>(kMaxPositions)) {
    config.faults().Add("rope: original_max_position_embeddings {} times factor {} is above {}",
                        spec.rope.original_max_position_embeddings, spec.rope.factor,
                        kMaxPositions);
    return;
  }
  spec.max_position_embeddings =
      std::max(spec.max_position_embeddings, static_cast<int64_t>(std::llround(context)));
}

void ReadWindow(ConfigReader& config, int64_t fallback, DecoderSpec& spec) {
  const int64_t window = config.IntOrNull("sliding_window", 1, kMaxWindow, fallback);
  spec.windows.assign(static_cast<size_t>(spec.num_layers), static_cast<int32_t>(window));
}

void ReadQwenWindows(ConfigReader& config, DecoderSpec& spec) {
  const bool used = config.Bool("use_sliding_window", false);
  const int64_t window = config.IntOrNull("sliding_window", 1, kMaxWindow, 4096);
  const int64_t first = config.Int("max_window_layers", 0, kMaxLayers, 28);
  const auto slides = [&](int64_t layer) { return used && window > 0 && layer >= first; };
  ReadWindows(config, used ? window : 0, slides, spec);
}

void ReadGemma(ConfigReader& config, const GemmaDefaults& defaults, DecoderSpec& spec) {
  constexpr double kMaxCap = 1e6;
  ReadSizes(config,
            {.max_position_embeddings = defaults.max_position_embeddings,
             .head_dim = 256,
             .norm_eps = 1e-6,
             .activation_key = "hidden_activation",
             .activation = "gelu_pytorch_tanh",
             .tie_word_embeddings = true},
            spec);
  spec.qkv_bias = spec.o_bias = config.Bool("attention_bias", false);
  spec.attention_scale =
      static_cast<float>(1.0 / std::sqrt(config.Number("query_pre_attn_scalar", 0.0, 1e9, 256.0)));
  spec.attention_softcap = static_cast<float>(
      config.NumberOrNull("attn_logit_softcapping", 0.0, kMaxCap, defaults.attention_softcap));
  spec.logit_softcap = static_cast<float>(
      config.NumberOrNull("final_logit_softcapping", 0.0, kMaxCap, defaults.logit_softcap));
  spec.embedding_scale = static_cast<float>(std::sqrt(static_cast<double>(spec.hidden_size)));
  spec.norm_offset = 1.0f;
  spec.branch_norms = true;
  if (config.Bool("use_bidirectional_attention", false)) {
    config.faults().AddUnimplemented("use_bidirectional_attention: true is not supported");
  }
}

ExpectedWeights FamilyWeights(const DecoderSpec& spec) {
  ExpectedWeights w;
  w.embedding = {"model.embed_tokens", spec.vocab_size, spec.hidden_size, false};
  if (spec.tie_word_embeddings) {
    w.tied_head = "lm_head";
  } else {
    w.head = ExpectedLinear{"lm_head", spec.vocab_size, spec.hidden_size, false};
  }
  const int64_t q_rows = spec.num_heads * spec.head_dim;
  const int64_t kv_rows = spec.num_kv_heads * spec.head_dim;
  const auto norm = [&](const std::string& module, int64_t size) {
    w.vectors.push_back({module + ".weight", size, spec.norm_offset});
  };
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attn = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    w.groups.push_back({{attn + "q_proj", q_rows, spec.hidden_size, spec.qkv_bias},
                        {attn + "k_proj", kv_rows, spec.hidden_size, spec.qkv_bias},
                        {attn + "v_proj", kv_rows, spec.hidden_size, spec.qkv_bias}});
    w.groups.push_back({{attn + "o_proj", spec.hidden_size, q_rows, spec.o_bias}});
    w.groups.push_back(
        {{mlp + "gate_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias},
         {mlp + "up_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias}});
    w.groups.push_back(
        {{mlp + "down_proj", spec.hidden_size, spec.intermediate_size, spec.mlp_bias}});
    norm(layer + "input_layernorm", spec.hidden_size);
    norm(layer + "post_attention_layernorm", spec.hidden_size);
    if (spec.branch_norms) {
      norm(layer + "pre_feedforward_layernorm", spec.hidden_size);
      norm(layer + "post_feedforward_layernorm", spec.hidden_size);
    }
    if (spec.qk_norm) {
      norm(attn + "q_norm", spec.head_dim);
      norm(attn + "k_norm", spec.head_dim);
    }
  }
  norm("model.norm", spec.hidden_size);
  return w;
}

}  // namespace quantd

// Llama (transformers' LlamaConfig and LlamaForCausalLM): the architecture to copy for a new one.
#include "engine/models/architecture.h"
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

void ReadLlama(ConfigReader& config, DecoderSpec& spec) {
  FaultList& faults = config.faults();
  spec.vocab_size = config.Int("vocab_size", 1, kMaxVocab);
  spec.hidden_size = config.Int("hidden_size", 1, kMaxWidth);
  spec.intermediate_size = config.Int("intermediate_size", 1, kMaxWidth);
  spec.num_layers = config.Int("num_hidden_layers", 1, kMaxLayers);
  spec.num_heads = config.Int("num_attention_heads", 1, kMaxHeads);
  spec.num_kv_heads = config.Int("num_key_value_heads", 1, kMaxHeads, spec.num_heads);
  if (!config.Has("head_dim") && spec.hidden_size % spec.num_heads != 0) {
    faults.Add(
        "hidden_size: {} is not a multiple of num_attention_heads {}, and there is no head_dim",
        spec.hidden_size, spec.num_heads);
  }
  spec.head_dim = config.Int("head_dim", 1, kMaxHeadDim, spec.hidden_size / spec.num_heads);
  if (spec.head_dim < 1 || spec.head_dim > kMaxHeadDim) {  // when it was derived
    faults.Add("head_dim: {} is not between 1 and {}", spec.head_dim, kMaxHeadDim);
  }
  spec.max_position_embeddings = config.Int("max_position_embeddings", 1, kMaxPositions, 2048);
  spec.norm_eps = static_cast<float>(config.Number("rms_norm_eps", 0.0, 1.0, 1e-6));
  spec.activation = config.HiddenActivation();
  spec.rope = config.Rope(spec.max_position_embeddings);
  spec.tie_word_embeddings = config.Bool("tie_word_embeddings", false);
  spec.attention_bias = config.Bool("attention_bias", false);
  spec.mlp_bias = config.Bool("mlp_bias", false);
  spec.dtype = config.CheckpointDType();
  spec.eos_token_ids = config.TokenIds("eos_token_id", spec.vocab_size);
  spec.bos_token_ids = config.TokenIds("bos_token_id", spec.vocab_size);
  if (config.Int("pretraining_tp", 0, kMaxHeads, 1) > 1) {
    faults.AddUnimplemented("pretraining_tp: values above 1 are not supported");
  }
}

ExpectedWeights LlamaWeights(const DecoderSpec& spec) {
  ExpectedWeights w;
  w.embedding = {"model.embed_tokens", spec.vocab_size, spec.hidden_size, false};
  if (spec.tie_word_embeddings) {
    w.tied_head = "lm_head";
  } else {
    w.head = ExpectedLinear{"lm_head", spec.vocab_size, spec.hidden_size, false};
  }
  const int64_t q_rows = spec.num_heads * spec.head_dim;
  const int64_t kv_rows = spec.num_kv_heads * spec.head_dim;
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    const std::string attn = layer + "self_attn.";
    const std::string mlp = layer + "mlp.";
    w.groups.push_back({{attn + "q_proj", q_rows, spec.hidden_size, spec.attention_bias},
                        {attn + "k_proj", kv_rows, spec.hidden_size, spec.attention_bias},
                        {attn + "v_proj", kv_rows, spec.hidden_size, spec.attention_bias}});
    w.groups.push_back({{attn + "o_proj", spec.hidden_size, q_rows, spec.attention_bias}});
    w.groups.push_back(
        {{mlp + "gate_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias},
         {mlp + "up_proj", spec.intermediate_size, spec.hidden_size, spec.mlp_bias}});
    w.groups.push_back(
        {{mlp + "down_proj", spec.hidden_size, spec.intermediate_size, spec.mlp_bias}});
    w.vectors.push_back({layer + "input_layernorm.weight", spec.hidden_size});
    w.vectors.push_back({layer + "post_attention_layernorm.weight", spec.hidden_size});
  }
  w.vectors.push_back({"model.norm.weight", spec.hidden_size});
  return w;
}

}  // namespace

const Architecture kLlama = {"LlamaForCausalLM", "llama", ReadLlama, LlamaWeights};

}  // namespace quantd

// Qwen 2 and 2.5 (transformers' Qwen2Config and Qwen2ForCausalLM): Llama with biases of q, k and v,
// and, if use_sliding_window, a window from layer max_window_layers on.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void ReadQwen2(ConfigReader& config, DecoderSpec& spec) {
  ReadSizes(config, {.max_position_embeddings = 32768, .norm_eps = 1e-6}, spec);
  ReadRope(config, {}, spec);
  ReadQwenWindows(config, spec);
  spec.qkv_bias = true;
}

}  // namespace

const Architecture kQwen2 = {"Qwen2ForCausalLM", "qwen2", ReadQwen2, FamilyWeights};

}  // namespace quantd

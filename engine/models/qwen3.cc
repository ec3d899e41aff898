// Qwen 3, dense (transformers' Qwen3Config and Qwen3ForCausalLM): Qwen 2 with norms of the heads of
// q and k in the place of their biases, and a head_dim that need not divide hidden_size.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void ReadQwen3(ConfigReader& config, DecoderSpec& spec) {
  ReadSizes(config, {.max_position_embeddings = 32768, .head_dim = 128, .norm_eps = 1e-6}, spec);
  ReadRope(config, {}, spec);
  ReadQwenWindows(config, spec);
  spec.qkv_bias = spec.o_bias = config.Bool("attention_bias", false);
  spec.qk_norm = true;
}

}  // namespace

const Architecture kQwen3 = {"Qwen3ForCausalLM", "qwen3", ReadQwen3, FamilyWeights};

}  // namespace quantd

// Llama 1 to 3.x (transformers' LlamaConfig and LlamaForCausalLM): the architecture to copy for a
// new one.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void ReadLlama(ConfigReader& config, DecoderSpec& spec) {
  ReadSizes(config, {.max_position_embeddings = 2048, .norm_eps = 1e-6}, spec);
  ReadRope(config, {}, spec);
  spec.qkv_bias = spec.o_bias = config.Bool("attention_bias", false);
  spec.mlp_bias = config.Bool("mlp_bias", false);
  if (config.Int("pretraining_tp", 0, 4096, 1) > 1) {
    config.faults().AddUnimplemented("pretraining_tp: values above 1 are not supported");
  }
}

}  // namespace

const Architecture kLlama = {"LlamaForCausalLM", "llama", ReadLlama, FamilyWeights};

}  // namespace quantd

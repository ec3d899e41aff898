// Mistral 7B and those after it (transformers' MistralConfig and MistralForCausalLM): Llama with a
// window in all layers, or none where sliding_window is null.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void ReadMistral(ConfigReader& config, DecoderSpec& spec) {
  ReadSizes(config, {.max_position_embeddings = 131072, .norm_eps = 1e-6}, spec);
  ReadRope(config, {}, spec);
  ReadWindow(config, 4096, spec);
}

}  // namespace

const Architecture kMistral = {"MistralForCausalLM", "mistral", ReadMistral, FamilyWeights};

}  // namespace quantd

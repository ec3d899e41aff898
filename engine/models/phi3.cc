// Phi-3, Phi-3.5 and Phi-4 dense (transformers' Phi3Config and Phi3ForCausalLM): Llama whose
// checkpoint has q, k, v and gate, up in one matrix each, with longrope (once called su), a window,
// and in Phi-4-mini a part of each head that is not rotated.
#include "engine/models/architecture.h"
#include "engine/models/family.h"
#include "kernels/status.h"

namespace quantd {
namespace {

void ReadPhi3(ConfigReader& config, DecoderSpec& spec) {
  ReadSizes(config, {.max_position_embeddings = 4096, .norm_eps = 1e-5}, spec);
  ReadRope(config, {}, spec);
  ReadWindow(config, 0, spec);
}

ExpectedWeights Weights(const DecoderSpec& spec) {
  ExpectedWeights w = FamilyWeights(spec);
  const int64_t qkv_rows = (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim;
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    ExpectedGroup* const groups = &w.groups[static_cast<size_t>(4 * i)];
    groups[0] = {{layer + "self_attn.qkv_proj", qkv_rows, spec.hidden_size}};
    groups[2] = {{layer + "mlp.gate_up_proj", 2 * spec.intermediate_size, spec.hidden_size}};
  }
  return w;
}

}  // namespace

const Architecture kPhi3 = {"Phi3ForCausalLM", "phi3", ReadPhi3, Weights};

}  // namespace quantd

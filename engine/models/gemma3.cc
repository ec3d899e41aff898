// Gemma 3's text models (transformers' Gemma3TextConfig and Gemma3ForCausalLM): Gemma 2 with norms
// of the heads of q and k in the place of soft caps, five layers of six with a window, and a rope
// of their own for these.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void Read(ConfigReader& config, DecoderSpec& spec) {
  ReadGemma(config, {.max_position_embeddings = 131072}, spec);
  ReadRope(config, {.theta = 1e6, .layer_type = "full_attention"}, spec);
  spec.sliding_rope =
      config.Rope(spec.max_position_embeddings, {.theta = 1e4,
                                                 .theta_key = "rope_local_base_freq",
                                                 .scaling = nullptr,
                                                 .layer_type = "sliding_attention"});
  const int64_t window = config.IntOrNull("sliding_window", 1, kMaxWindow, 4096);
  const int64_t pattern = config.Int("sliding_window_pattern", 1, int64_t{1} << 20, 6);
  ReadWindows(
      config, window, [=](int64_t layer) { return (layer + 1) % pattern != 0; }, spec);
  spec.qk_norm = true;
}

}  // namespace

const Architecture kGemma3 = {"Gemma3ForCausalLM", "gemma3_text", Read, FamilyWeights};

}  // namespace quantd

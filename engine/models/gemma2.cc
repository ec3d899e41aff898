// Gemma 2 (transformers' Gemma2Config and Gemma2ForCausalLM): four norms a layer, stored as
// distances from 1, soft caps on attention scores and logits, a window in every other layer from
// the first on, embeddings times the root of their width.
#include "engine/models/architecture.h"
#include "engine/models/family.h"

namespace quantd {
namespace {

void Read(ConfigReader& config, DecoderSpec& spec) {
  ReadGemma(config,
            {.max_position_embeddings = 8192, .attention_softcap = 50.0, .logit_softcap = 30.0},
            spec);
  ReadRope(config, {}, spec);
  const int64_t window = config.IntOrNull("sliding_window", 1, kMaxWindow, 4096);
  ReadWindows(
      config, window, [](int64_t layer) { return layer % 2 == 0; }, spec);
}

}  // namespace

const Architecture kGemma2 = {"Gemma2ForCausalLM", "gemma2", Read, FamilyWeights};

}  // namespace quantd

// What most families of decoders share: the keys of their config.json and the names of their
// tensors. A family's file calls these with what it does differently. Plain functions.
#pragma once

#include <cstdint>

#include "engine/models/config_reader.h"
#include "engine/models/decoder_spec.h"
#include "engine/weights/loader.h"

namespace quantd {

/// What a config means where it says nothing: transformers' defaults, which each family has its own
/// of. A saved config.json leaves out what equals them.
struct ConfigDefaults {
  int64_t max_position_embeddings = 2048;
  int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  double norm_eps = 1e-6;
  const char* activation_key = "hidden_act";
  const char* activation = "silu";
  bool tie_word_embeddings = false;
};

/// The sizes, norm epsilon, activation, head, token ids and dtype. Rope, windows and biases are the
/// family's own.
void ReadSizes(ConfigReader& config, const ConfigDefaults& defaults, DecoderSpec& spec);

/// Rope as `keys` say. YaRN's context, original * factor, becomes that of the spec if it is longer
/// than max_position_embeddings, as it is in Qwen's configs.
void ReadRope(ConfigReader& config, const ConfigReader::RopeKeys& keys, DecoderSpec& spec);

/// Upper bound of sliding_window, as of positions.
inline constexpr int64_t kMaxWindow = int64_t{1} << 24;
/// sliding_window, null for none, in all layers.
void ReadWindow(ConfigReader& config, int64_t fallback, DecoderSpec& spec);
/// `window` (0: none) in the layers that layer_types calls sliding, else in those for which
/// `slides(layer)`.
template <typename Slides>
void ReadWindows(ConfigReader& config, int64_t window, const Slides& slides, DecoderSpec& spec) {
  const auto types = config.SlidingLayers(spec.num_layers);
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const bool sliding = types ? (*types)[static_cast<size_t>(i)] : slides(i);
    if (sliding && window == 0) {
      config.faults().Add("layer_types: layer {} is sliding_attention without a sliding_window", i);
      return;
    }
    spec.windows.push_back(sliding ? static_cast<int32_t>(window) : 0);
  }
}

/// Qwen's windows: none without use_sliding_window, else from layer max_window_layers on.
void ReadQwenWindows(ConfigReader& config, DecoderSpec& spec);

/// ReadSizes, and what Gemma 2 and 3 have in common beyond it. Caps: defaults, 0 for none.
struct GemmaDefaults {
  int64_t max_position_embeddings = 0;
  double attention_softcap = 0.0;
  double logit_softcap = 0.0;
};
void ReadGemma(ConfigReader& config, const GemmaDefaults& defaults, DecoderSpec& spec);

/// model.layers.N.self_attn.q_proj and so on, as Llama names them; with branch_norms, the four
/// norms of a layer as Gemma does.
ExpectedWeights FamilyWeights(const DecoderSpec& spec);

}  // namespace quantd

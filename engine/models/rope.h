// RopeTable: the cosines and sines of rotary position embedding, computed once per model. Pure
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/models/decoder_spec.h"

namespace quantd {

/// Frequencies of the head_dim / 2 pairs, in f32 as transformers computes them (ROPE_INIT_FUNCTIONS
/// "default" and "llama3" of modeling_rope_utils.py).
std::vector<float> RopeFrequencies(const RopeSpec& rope, int64_t head_dim);

/// f32 [max_positions, head_dim]: for each position the cosines of all pairs, then the sines, of
/// position * frequency (an f32 product).
std::vector<float> RopeTable(const RopeSpec& rope, int64_t head_dim, int64_t max_positions);

}  // namespace quantd

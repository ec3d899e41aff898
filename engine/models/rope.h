// RopeTable: the cosines and sines of rotary position embedding, computed once per model. Pure
// functions.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/models/decoder_spec.h"

namespace quantd {

/// Frequencies of the rotary_dim / 2 pairs, in f32 as transformers computes them
/// (ROPE_INIT_FUNCTIONS of modeling_rope_utils.py), for contexts of up to max_positions.
std::vector<float> RopeFrequencies(const RopeSpec& rope, int64_t rotary_dim, int64_t max_positions);

/// f32 [max_positions, rotary_dim]: for each position the cosines of all pairs, then the sines, of
/// position * frequency (an f32 product), times rope.attention_factor.
std::vector<float> RopeTable(const RopeSpec& rope, int64_t rotary_dim, int64_t max_positions);

}  // namespace quantd

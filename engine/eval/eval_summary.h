// SummarizeProfile: the scores of a profile's windows become the figures of a report. Pure
// functions.
#pragma once

#include <span>
#include <vector>

#include "engine/eval/eval_result.h"

namespace quantd {

/// `windows`: of every window of the text, in order. Intervals are of 1000 resamples of windows
/// with a fixed seed, so that they come out the same again.
ProfileResult SummarizeProfile(ProfileFacts facts, std::span<const WindowScore> windows,
                               bool compared);

/// Profiles that no other one beats: less or equal bytes at less or equal divergence (with a
/// reference: mean KL; else perplexity). Indices into `profiles`, fewest bytes first; profiles that
/// were refused are left out.
std::vector<size_t> ParetoFront(std::span<const ProfileResult> profiles);

}  // namespace quantd

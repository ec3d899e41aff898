// Drafts by prompt lookup (Saxena 2023): what followed the last tokens when they stood earlier in
// the same text. Free of a draft model, and right often where the output repeats the prompt:
// summaries, edits, code, retrieval.
#pragma once

#include <cstdint>
#include <span>

namespace quantd {

/// Longest run of last tokens that is looked up; shorter ones follow, down to a single token.
inline constexpr size_t kMaxMatchingNgram = 3;

/// At most `max_tokens` tokens that stood behind the latest earlier place of the last tokens; empty
/// when there is none. A part of `tokens`.
std::span<const int32_t> LookUpDraft(std::span<const int32_t> tokens, size_t max_tokens);

}  // namespace quantd

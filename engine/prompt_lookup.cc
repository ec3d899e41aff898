// LookUpDraft: see prompt_lookup.h.
#include "engine/prompt_lookup.h"

#include <algorithm>

namespace quantd {

std::span<const int32_t> LookUpDraft(std::span<const int32_t> tokens, size_t max_tokens) {
  for (size_t size = std::min(kMaxMatchingNgram, tokens.size()); size > 0; --size) {
    const auto last = tokens.last(size);
    // From the end: what was said last is the most likely to go on in the same way.
    for (size_t at = tokens.size() - size; at-- > 0;) {
      if (!std::equal(last.begin(), last.end(), tokens.begin() + static_cast<std::ptrdiff_t>(at))) {
        continue;
      }
      const auto rest = tokens.subspan(at + size);
      return rest.first(std::min(max_tokens, rest.size()));
    }
  }
  return {};
}

}  // namespace quantd

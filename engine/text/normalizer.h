// Unicode normalization by ICU, linear in the text whatever it is. Stateless.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer_spec.h"

namespace quantd {

/// `text` (valid UTF-8, under 2 GiB) brought into each of `forms` in turn. INTERNAL if ICU fails.
absl::StatusOr<std::string> Normalize(const std::vector<NormalizationForm>& forms,
                                      std::string_view text);

/// No form makes one byte of more bytes than these: a code point has at most four, which decompose
/// to one byte or more, and what composition gains is less (iota, U+1FBE, with two marks: 7 to 2).
inline constexpr int64_t kMostNormalizedBytes = 4;

}  // namespace quantd

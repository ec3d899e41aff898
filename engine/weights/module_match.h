// Which modules a skip list or an override means. Pure functions; patterns are bounded and matched
// in polynomial time, so that a hostile one cannot hang the loader.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace quantd {

/// Longest pattern and module name that are matched.
inline constexpr size_t kMaxPatternLength = 256;
inline constexpr size_t kMaxModuleLength = 512;

/// INVALID_ARGUMENT when `pattern` is too long or not a regular expression.
absl::Status CheckSkipPattern(const std::string& pattern);
absl::Status CheckOverridePattern(const std::string& pattern);

/// Hugging Face's should_convert_module, negated: `pattern`, a regular expression, matches a prefix
/// of `module` that ends at a dot or at its end, or `module` ends with `pattern`. With "re:" in
/// front, the expression must match the whole name.
bool SkipMatches(const std::string& pattern, const std::string& module);

/// "re:<ECMAScript expression>" over the whole name; else the name itself or a dotted suffix of it.
bool OverrideMatches(const std::string& pattern, const std::string& module);

}  // namespace quantd

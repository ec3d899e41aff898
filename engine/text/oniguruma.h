// Translates the patterns of tokenizer.json, written for Oniguruma, to PCRE2. Stateless.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace quantd {

/// The PCRE2 pattern (options UTF, UCP, MULTILINE, newline LF) that matches what `pattern` matches
/// in Oniguruma. UNIMPLEMENTED naming a construct that the two read differently and that is not
/// translated.
absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern);

}  // namespace quantd

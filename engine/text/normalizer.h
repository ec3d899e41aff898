// Unicode normalization by ICU, linear in the text whatever it is. Stateless.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer_spec.h"

namespace quantd {

/// `text` (valid UTF-8, under 2 GiB) brought into each of `forms` in turn. INTERNAL if ICU fails.
absl::StatusOr<std::string> Normalize(const std::vector<NormalizationForm>& forms,
                                      std::string_view text);

}  // namespace quantd

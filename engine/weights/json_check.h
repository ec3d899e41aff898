// CheckJson: what every JSON file of a model folder must satisfy before it is read: valid JSON in
// UTF-8, no key twice in an object (readers disagree on which one counts), bounded depth. Pure
// function.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace quantd {

/// DATA_LOSS naming `source` and the fault. After it, nlohmann's parse of `text` cannot fail.
absl::Status CheckJson(std::string_view text, const std::string& source, int max_depth = 32);

}  // namespace quantd

// From the text of a chat template to its tree. Stateless.
#pragma once

#include <string_view>

#include "absl/status/statusor.h"
#include "engine/text/jinja/ast.h"

namespace quantd::jinja {

/// INVALID_ARGUMENT with the line for what is no template, UNIMPLEMENTED naming a tag that is not
/// supported, RESOURCE_EXHAUSTED for what is nested too deeply.
absl::StatusOr<Body> Parse(std::string_view source);

}  // namespace quantd::jinja

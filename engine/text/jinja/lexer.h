// The tokens of a chat template: text, and what stands in {{ }} and {% %}. Rules of Jinja 3.1 with
// trim_blocks and lstrip_blocks, as transformers sets them. Stateless.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd::jinja {

struct Token {
  enum class Kind : uint8_t {
    kData,           // text outside of tags
    kVariableBegin,  // {{
    kVariableEnd,
    kBlockBegin,  // {%
    kBlockEnd,
    kName,
    kString,  // `text` without quotes and escapes
    kInteger,
    kFloat,
    kOperator,  // `text` is its spelling
    kEnd,
  };
  Kind kind = Kind::kEnd;
  std::string text;
  int64_t integer = 0;
  double number = 0;
  int line = 1;
};

/// All tokens of `source` (valid UTF-8), the last of them kEnd. INVALID_ARGUMENT with the line for
/// what is no token, or a tag that does not end.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace quantd::jinja

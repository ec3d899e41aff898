// PreTokenizer: cuts text into the pieces that are merged each by itself. Immutable after Create,
// safe from any thread; each caller brings its own scratch memory.
#pragma once

#include <optional>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/regex.h"
#include "engine/text/tokenizer_spec.h"

namespace quantd {

class PreTokenizer {
 public:
  /// UNIMPLEMENTED naming a pattern that cannot be used.
  static absl::StatusOr<PreTokenizer> Create(const std::vector<PreTokenizerStep>& steps);

  using Emit = absl::FunctionRef<void(std::string_view piece)>;
  /// Calls `emit` for each piece of `text` (valid UTF-8) in order; the views live during the call
  /// only. `at_start`: `text` is what the whole text begins with, not what comes after a token.
  absl::Status Split(std::string_view text, bool at_start, Regex::Scratch* scratch,
                     Emit emit) const {
    return Run(0, text, at_start, scratch, emit);
  }

 private:
  struct Stage {
    PreTokenizerStep step;
    std::optional<Regex> regex;  // of kSplit
  };
  // Cuts `text` by the stages from `stage` on.
  absl::Status Run(size_t stage, std::string_view text, bool at_start, Regex::Scratch* scratch,
                   Emit emit) const;

  std::vector<Stage> stages_;
};

}  // namespace quantd

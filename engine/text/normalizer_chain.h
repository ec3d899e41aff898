// NormalizerChain: the normalizers of tokenizer.json in sequence. Immutable after Create, safe from
// any thread; each caller brings its own scratch memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/regex.h"
#include "engine/text/tokenizer_spec.h"

namespace quantd {

class NormalizerChain {
 public:
  /// UNIMPLEMENTED naming a pattern that cannot be used.
  static absl::StatusOr<NormalizerChain> Create(const std::vector<NormalizerStep>& steps);

  bool empty() const { return stages_.empty(); }
  /// `text` (valid UTF-8, under 2 GiB) after every step. INVALID_ARGUMENT where it would grow
  /// beyond reason, INTERNAL if ICU fails.
  absl::StatusOr<std::string> Normalize(std::string_view text, Regex::Scratch* scratch) const;

  /// At most so many bytes of a text become one byte of what is made of it; none where any number
  /// might.
  std::optional<int64_t> MostShrink() const;

 private:
  struct Stage {
    NormalizerStep step;
    std::optional<Regex> regex;  // of a pattern that is no string
  };
  std::vector<Stage> stages_;
};

}  // namespace quantd

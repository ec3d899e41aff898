// StreamDecoder: the text of one sequence as its tokens arrive, with stop strings.
//
// Never emits half a code point: bytes of an incomplete UTF-8 sequence wait for the next token, and
// a run of byte tokens (byte fallback) for the token after it, because it may still turn out to be
// no UTF-8. Never emits text that could still become a stop string. The concatenated deltas equal
// Decode of all ids (up to the stop string). The stop string that ends first wins, the longest
// among those that end there, so the result does not depend on how the text is cut into tokens. One
// thread at a time.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/text/token_joiner.h"
#include "engine/text/tokenizer.h"

namespace quantd {

class StreamDecoder {
 public:
  /// `tokenizer` must outlive this. `stop_strings` are non-empty valid UTF-8. `continues`: text
  /// comes before the first token, which keeps the space that it begins with. `include_stop`: the
  /// text ends with the stop string instead of before it.
  StreamDecoder(const Tokenizer& tokenizer, std::vector<std::string> stop_strings,
                bool skip_special_tokens, bool continues = false, bool include_stop = false);

  /// Other stop strings from the next token on.
  void SetStopStrings(std::vector<std::string> stop_strings);

  /// Takes one token; appends the text that is now certain to `*delta`. Returns true when a stop
  /// string was completed: the text up to it has been emitted, nothing more will be.
  bool Push(int32_t id, std::string* delta);
  /// Emits what was withheld (incomplete bytes as U+FFFD). Call once, at the end, unless stopped.
  void Finish(std::string* delta);
  /// The stop string that was found, or empty.
  const std::string& matched_stop() const { return matched_stop_; }

 private:
  // Emits held_ up to a possible stop string.
  bool Emit(bool last, std::string* delta);

  const Tokenizer& tokenizer_;
  std::vector<std::string> stop_strings_;
  bool skip_special_tokens_;
  bool include_stop_;
  TokenJoiner joiner_;
  std::string held_;  // valid text that may be the beginning of a stop string
  std::string matched_stop_;
};

}  // namespace quantd

// TokenJoiner: text from the bytes of tokens, as they come. What Tokenizer::Decode and
// StreamDecoder are made of. One thread at a time; a copy goes on by itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "engine/text/tokenizer.h"

namespace quantd {

class TokenJoiner {
 public:
  /// `tokenizer` must outlive this. `continues`: text comes before the first token, so nothing is
  /// taken off the front.
  TokenJoiner(const Tokenizer& tokenizer, bool continues);

  /// Takes a token; appends the text that is now certain to `*text`: whole code points.
  void Push(int32_t id, std::string* text);
  /// Appends what was withheld; what is no UTF-8 becomes U+FFFD. Call once, at the end.
  void Finish(std::string* text);

 private:
  void EndByteRun(std::string* text);
  // Appends `part` without what the rules take off the front.
  void Append(std::string_view part, std::string* text);

  const Tokenizer* tokenizer_;
  bool first_;             // no token has come, and no text before it
  int32_t left_to_strip_;  // of the rules' characters at the front
  std::string pending_;    // bytes that are no text yet: half a code point, or a run of byte tokens
};

}  // namespace quantd

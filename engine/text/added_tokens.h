// AddedTokens: finds added tokens in a text. The first stage of encoding (tokens looked for in the
// raw text), and again after the normalizer (tokens looked for in the normalized text).
//
// Immutable after construction, safe from any thread.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/text/tokenizer_spec.h"

namespace quantd {

/// A part of a text: an added token, or text between them.
struct TextSegment {
  std::string_view text;
  int32_t id = -1;  // of the added token, or -1
};

class AddedTokens {
 public:
  AddedTokens();
  /// Adds a token that appears in the text as `pattern` (its content, normalized if it is to be).
  /// The same pattern again takes the place of the first.
  void Add(const AddedTokenSpec& token, std::string_view pattern);

  /// Appends the segments of `text` (valid UTF-8, no empty ones). At each position the longest
  /// token wins; a match that single_word refuses is skipped whole.
  void Split(std::string_view text, std::vector<TextSegment>* segments) const;

 private:
  struct Token {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  // A trie over bytes, children as a linked list of siblings, but for the root.
  struct Node {
    uint8_t byte = 0;
    int32_t first_child = -1;
    int32_t next_sibling = -1;
    int32_t token = -1;  // index in tokens_ where a pattern ends
  };
  int32_t Child(int32_t node, uint8_t byte) const;
  // The longest pattern at the beginning of `text`: its index in tokens_, or -1, and its size.
  int32_t Longest(std::string_view text, size_t* size) const;

  std::vector<Token> tokens_;
  std::vector<Node> nodes_;            // [0] is the root
  std::array<int32_t, 256> starts_{};  // the root's children by byte; -1: none
};

}  // namespace quantd

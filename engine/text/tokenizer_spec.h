// TokenizerSpec: what tokenizer.json and tokenizer_config.json say, as plain values.
//
// ReadTokenizerSpec is the only place that knows the files' JSON; each stage (added tokens,
// normalizer, pre-tokenizer, vocabulary, merges) is built from its part of the spec. Plain values,
// no threads.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

/// Ids are below this: an array is indexed by them, and the largest vocabularies have a million.
inline constexpr int32_t kMaxTokens = 1 << 22;

struct AddedTokenSpec {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where no word character touches it
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // takes the white space after it
  bool normalized = true;    // looked for in the normalized text
  bool special = false;      // left out by skip_special_tokens
};

enum class NormalizationForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

struct SplitSpec {
  std::string pattern;
  bool literal = false;  // `pattern` is a string, not a regular expression
  bool removed = false;  // behavior Removed; else Isolated
  bool invert = false;   // what does not match counts as the match
};

struct PreTokenizerSpec {
  std::vector<SplitSpec> splits;  // in this order, each on the pieces of the one before
  // Of the ByteLevel that ends the list:
  bool add_prefix_space = false;  // a piece that does not begin with a space gets one
  std::string gpt2_pattern;       // then splits by this; empty without use_regex
};

struct BpeSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;       // spelled as in the file
  std::vector<std::pair<std::string, std::string>> merges;  // the first is merged first
  bool ignore_merges = false;                               // a piece that is a token is not merged
  std::optional<std::string> unk_token;  // for characters that the vocabulary lacks
};

struct TokenizerSpec {
  std::string path;  // of tokenizer.json, for messages
  std::vector<AddedTokenSpec> added_tokens;
  std::vector<NormalizationForm> normalizers;
  PreTokenizerSpec pre_tokenizer;
  BpeSpec bpe;
  std::vector<int32_t> template_before;  // ids that the post-processor puts before the text
  std::vector<int32_t> template_after;   // and after it
  std::optional<std::string> bos_token;  // of tokenizer_config.json
  std::optional<std::string> eos_token;
};

/// Reads `dir`/tokenizer.json and, where there is one, `dir`/tokenizer_config.json. NOT_FOUND
/// without the first, DATA_LOSS listing everything that is malformed, UNIMPLEMENTED naming a
/// component or an option that is not supported. Ids are in [0, kMaxTokens).
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const std::filesystem::path& dir);

}  // namespace quantd

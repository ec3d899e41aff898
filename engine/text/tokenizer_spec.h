// TokenizerSpec: what tokenizer.json (or tokenizer.model) and tokenizer_config.json say, as plain
// values.
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
  bool normalized = true;    // looked for, normalized itself, in the normalized text
  bool special = false;      // left out by skip_special_tokens
  // A user-defined symbol of SentencePiece: looked for in the normalized text as it is spelled.
  bool model_symbol = false;
};

enum class NormalizationForm : uint8_t { kNfc, kNfd, kNfkc, kNfkd };

struct NormalizerStep {
  enum class Kind : uint8_t {
    kForm,     // a Unicode normalization form
    kPrepend,  // `content` before a text that is not empty
    kReplace,  // each match of `pattern` by `content`
  };
  Kind kind = Kind::kForm;
  NormalizationForm form = NormalizationForm::kNfc;
  std::string pattern;
  bool literal = true;  // `pattern` is a string, not a regular expression
  std::string content;
};

/// What becomes of the matches that a Split finds; what lies between them is a piece each.
enum class SplitBehavior : uint8_t {
  kRemoved,
  kIsolated,            // a piece each
  kContiguous,          // neighbouring matches are one piece
  kMergedWithPrevious,  // a match ends the piece before it
  kMergedWithNext,      // a match begins the piece after it
};

struct PreTokenizerStep {
  enum class Kind : uint8_t {
    kSplit,
    kMetaspace,    // spaces become `replacement`, and one is put before the text
    kPrefixSpace,  // of ByteLevel: a piece that does not begin with a space gets one
  };
  enum class Prepend : uint8_t { kAlways, kFirst, kNever };  // kFirst: at the text's begin only
  Kind kind = Kind::kSplit;
  std::string pattern;  // of kSplit
  bool literal = false;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;      // what does not match counts as the match
  std::string replacement;  // of kMetaspace
  Prepend prepend = Prepend::kAlways;
};

/// How token spellings become text.
struct TextDecoderSpec {
  struct Edit {  // of each token by itself
    enum class Kind : uint8_t {
      kReplace,    // `pattern` by `content`
      kMetaspace,  // `pattern`, one character, by a space; nothing in the first token of a text
    };
    Kind kind = Kind::kReplace;
    std::string pattern;
    std::string content;
  };
  bool byte_level = false;  // the byte-level alphabet; then nothing else is set
  std::vector<Edit> edits;
  bool byte_fallback = false;  // "<0x0A>" is the byte 0x0A
  std::string strip;           // a character, of which up to
  int32_t strip_start = 0;     // this many are taken off the front of the text
};

struct BpeSpec {
  std::vector<std::pair<std::string, int32_t>> vocab;       // spelled as in the file
  std::vector<std::pair<std::string, std::string>> merges;  // the first is merged first
  std::vector<uint32_t> ranks;  // of the merges, where it is not their index
  bool ignore_merges = false;   // a piece that is a token is not merged
  // For characters that the vocabulary lacks:
  bool byte_fallback = false;            // first the tokens of their bytes ("<0x0A>"),
  std::optional<std::string> unk_token;  // then this one,
  bool fuse_unk = false;                 // once for several in a row
};

struct TokenizerSpec {
  std::string path;  // of tokenizer.json or tokenizer.model, for messages
  std::vector<AddedTokenSpec> added_tokens;
  std::vector<NormalizerStep> normalizers;
  // Pieces are of the byte-level alphabet: tokens are bytes, else characters.
  bool byte_level = true;
  std::vector<PreTokenizerStep> pre_tokenizers;
  BpeSpec bpe;
  TextDecoderSpec decoder;
  std::vector<int32_t> template_before;  // ids that the post-processor puts before the text
  std::vector<int32_t> template_after;   // and after it
  std::optional<std::string> bos_token;  // of tokenizer_config.json
  std::optional<std::string> eos_token;
};

/// Reads `dir`/tokenizer.json, else `dir`/tokenizer.model, and, where there is one,
/// `dir`/tokenizer_config.json. NOT_FOUND without the first two, DATA_LOSS listing everything that
/// is malformed, UNIMPLEMENTED naming a component or an option that is not supported. Ids are in
/// [0, kMaxTokens).
absl::StatusOr<TokenizerSpec> ReadTokenizerSpec(const std::filesystem::path& dir);

}  // namespace quantd

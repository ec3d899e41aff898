// Tokenizer: text to token ids and back, read from a model folder's tokenizer.json, or from
// SentencePiece's tokenizer.model.
//
// BPE over bytes or over characters with byte fallback, as Hugging Face's tokenizers library
// defines it: added tokens split first, then the normalizers, the pre-tokenizers' patterns (PCRE2),
// merges, and the post-processor's template. Anything in the file that is not implemented is
// refused by name when loading. Encoding takes time linear in the text (n log n within one piece).
// Immutable after loading, safe from any thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

/// How the bytes of tokens become text: see TokenJoiner.
struct JoinRules {
  // Byte tokens are those of byte fallback, the others whole text. Else any token may hold part of
  // a code point, and each maximal invalid subpart is one U+FFFD.
  bool byte_runs = false;
  // Up to `strip_start` of this character (or none) are taken off the front of a text.
  std::string strip;
  int32_t strip_start = 0;
};

class Tokenizer {
 public:
  /// Reads `dir`/tokenizer.json, else `dir`/tokenizer.model (and tokenizer_config.json where there
  /// is one, for its bos/eos names). NOT_FOUND without a file, DATA_LOSS for a broken one (a merge
  /// of unknown tokens, duplicate ids, ...), UNIMPLEMENTED naming the component that is not
  /// supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& dir);
  virtual ~Tokenizer() = default;

  /// Token ids of `text`. `add_special_tokens` applies the post-processor's template (a BOS, say).
  /// INVALID_ARGUMENT with the byte offset when `text` is not valid UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      bool add_special_tokens) const = 0;

  /// So many tokens at least `text` comes to, in the time it takes to look at its size; 0 where
  /// nothing is known. Never more than Encode gives, with or without special tokens.
  virtual int64_t MinTokens(std::string_view) const { return 0; }

  /// Bytes of one token: not always valid UTF-8 by themselves. Special tokens give their content.
  /// Empty for an id that no token has.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  /// Whether a run of such tokens is to be read as UTF-8 (JoinRules::byte_runs).
  virtual bool IsByteToken(int32_t) const { return false; }
  /// The bytes of a token that begins a text: some decoders leave out its space.
  virtual std::string FirstTokenBytes(int32_t id) const { return std::string(TokenBytes(id)); }
  virtual const JoinRules& join_rules() const;
  /// The id of the token that tokenizer.json spells so ("\u0120the" for " the"); an added token by
  /// its content.
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  /// One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;

  /// The whole text of `ids`; what is no UTF-8 becomes U+FFFD, as TokenJoiner has it.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;
};

}  // namespace quantd

// Tokenizer: text to token ids and back, read from a model folder's tokenizer.json.
//
// Byte-level BPE as Hugging Face's tokenizers library defines it: added tokens split first, then
// the normalizer (none or NFC), the pre-tokenizer's pattern (PCRE2), merges, and the
// post-processor's template. Anything in the file that is not implemented is refused by name when
// loading. Encoding takes time linear in the text (n log n within one piece). Immutable after
// loading, safe from any thread.
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

class Tokenizer {
 public:
  /// Reads `dir`/tokenizer.json (and tokenizer_config.json where there is one, for its bos/eos
  /// names). NOT_FOUND without the file, DATA_LOSS for a broken one (a merge of unknown tokens,
  /// duplicate ids, ...), UNIMPLEMENTED naming the component that is not supported.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::filesystem::path& dir);
  virtual ~Tokenizer() = default;

  /// Token ids of `text`. `add_special_tokens` applies the post-processor's template (a BOS, say).
  /// INVALID_ARGUMENT with the byte offset when `text` is not valid UTF-8.
  virtual absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                                      bool add_special_tokens) const = 0;

  /// Bytes of one token: not always valid UTF-8 by themselves. Special tokens give their content.
  /// Empty for an id that no token has.
  virtual std::string_view TokenBytes(int32_t id) const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  /// The id of the token that tokenizer.json spells so ("\u0120the" for " the"); an added token by
  /// its content.
  virtual std::optional<int32_t> TokenToId(std::string_view token) const = 0;
  /// One more than the largest id.
  virtual int32_t vocab_size() const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;

  /// The whole text of `ids`; invalid UTF-8 becomes U+FFFD as in Rust's from_utf8_lossy.
  virtual std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const = 0;
};

}  // namespace quantd

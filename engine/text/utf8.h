// UTF-8 by the Unicode standard's table 3-7: validation, decoding, and the replacement of what is
// invalid.
//
// Used by the tokenizer (input must be valid) and by both decoders (a token is any bytes).
// Stateless.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace quantd {

/// What begins a text: a whole code point, a byte sequence that can never become one, or the
/// beginning of one that the text ends before.
struct Utf8Unit {
  enum class Kind : uint8_t { kValid, kInvalid, kIncomplete };
  Kind kind = Kind::kInvalid;
  uint8_t size = 0;         // bytes; of kInvalid and kIncomplete, the maximal subpart
  char32_t code_point = 0;  // of kValid
};

/// The unit at the beginning of `text`, which is not empty.
Utf8Unit NextUtf8(std::string_view text);

/// Length of the longest valid prefix: `text.size()` if all of it is valid.
size_t ValidUtf8Prefix(std::string_view text);

/// Offset of the code point that ends at `end` > 0; `text` is valid.
size_t PreviousUtf8(std::string_view text, size_t end);

/// Appends `bytes` to `*out`, each maximal invalid subpart as one U+FFFD, as Rust's from_utf8_lossy
/// and the WHATWG decoder do. Unless `last`, an incomplete sequence at the end stays. Returns the
/// number of bytes taken.
size_t AppendLossyUtf8(std::string_view bytes, bool last, std::string* out);

}  // namespace quantd

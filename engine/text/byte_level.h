// The byte-level alphabet of GPT-2: every byte has a printable character, so that a vocabulary of
// arbitrary bytes can be written as text (space is U+0120, newline U+010A). Stateless.
#pragma once

#include <string>
#include <string_view>

namespace quantd {

/// The bytes that `token` spells in the byte-level alphabet. False, with `*bytes` undefined, when a
/// character is not in the alphabet. `token` is valid UTF-8.
bool FromByteLevel(std::string_view token, std::string* bytes);

}  // namespace quantd

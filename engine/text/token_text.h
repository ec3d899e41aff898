// The text that one token's spelling stands for, by the decoder of tokenizer.json. Stateless.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "engine/text/tokenizer_spec.h"

namespace quantd {

/// The byte of a byte-fallback token, "<0x0A>"; none for any other spelling.
std::optional<char> ByteOfToken(std::string_view spelling);
/// And back: "<0x0A>".
std::string TokenOfByte(uint8_t byte);

/// `spelling` after the decoder's edits. `first`: no token comes before it in its text.
std::string EditToken(const TextDecoderSpec& decoder, std::string_view spelling, bool first);

}  // namespace quantd

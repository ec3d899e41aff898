// What Python's str can do, on UTF-8: white space, case, slices by character, searching in linear
// time. Stateless; every text is valid UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace quantd::jinja {

/// Bytes of white space, as str.isspace has it, at the beginning and at the end.
size_t LeadingSpace(std::string_view text);
size_t TrailingSpace(std::string_view text);

/// `text` without the characters of `characters` (white space if null) at its ends.
std::string_view Strip(std::string_view text, const std::string* characters, bool left, bool right);

/// Number of characters.
int64_t Length(std::string_view text);
/// Each character of `text`.
std::vector<std::string_view> Characters(std::string_view text);
/// Byte offset of the character with this index: `text.size()` beyond the last.
size_t OffsetOf(std::string_view text, int64_t index);

/// Where `pattern` is found at or after `from`, else npos. Linear in the text.
size_t Find(std::string_view text, std::string_view pattern, size_t from = 0);
/// The first `count` occurrences (all where negative) of `from` replaced, or as many as fit into
/// `limit` bytes: false then.
bool Replace(std::string_view text, std::string_view from, std::string_view to, int64_t count,
             size_t limit, std::string* out);
/// str.split and str.rsplit at `separator`, or, where it is empty, at runs of white space.
std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t max_splits, bool from_right);
/// str.splitlines.
std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends);

enum class Case : uint8_t { kUpper, kLower, kTitle, kCapitalize, kSwap };
/// str.upper and its like; kTitle is str.title.
std::string ChangeCase(std::string_view text, Case to);
/// Whether the text is not empty and all of its characters are such, as str.isalpha and its like.
enum class Class : uint8_t { kAlpha, kDigit, kAlnum, kSpace };
bool AllAre(std::string_view text, Class which);
/// Whether the text has characters with case, and all of them are upper (or lower).
bool HasCase(std::string_view text, bool upper);

}  // namespace quantd::jinja

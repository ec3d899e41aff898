// Replacing one string by another within a text. Stateless.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace quantd {

/// Appends `text` to `*out`, each occurrence of `pattern` (not empty), from the left, replaced by
/// `content`. False, and a part of it, once `*out` has more than `limit` bytes.
bool AppendReplaced(std::string_view text, std::string_view pattern, std::string_view content,
                    size_t limit, std::string* out);

/// The same without a limit.
std::string Replaced(std::string_view text, std::string_view pattern, std::string_view content);

}  // namespace quantd

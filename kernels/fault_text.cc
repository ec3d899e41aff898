#include "kernels/fault_text.h"

#include <algorithm>

namespace quantd {
namespace {

constexpr std::string_view kElse = "; ", kAllowed = ", allowed: ", kOneOf = " is not one of ";

// Where `separator` first stands outside of double quotes.
size_t FindUnquoted(std::string_view text, std::string_view separator) {
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') quoted = !quoted;
    if (!quoted && text.substr(i).starts_with(separator)) return i;
  }
  return std::string_view::npos;
}

}  // namespace

FaultParts SplitFault(std::string_view message) {
  const size_t other = FindUnquoted(message, kElse), allowed = FindUnquoted(message, kAllowed);
  if (const size_t end = std::min(other, allowed); end != std::string_view::npos) {
    const size_t skip = end == allowed ? kAllowed.find("allowed") : kElse.size();
    return {std::string(message.substr(0, end)), std::string(message.substr(end + skip))};
  }
  const size_t one_of = FindUnquoted(message, kOneOf);
  if (one_of == std::string_view::npos) return {std::string(message), ""};
  return {std::string(message), std::string(message.substr(one_of + kOneOf.find("one of")))};
}

std::string ForeignWords(std::string_view words) {
  std::string out;
  while (!words.empty()) {  // one pass: a parser may quote megabytes
    size_t skip = 0;
    for (const std::string_view separator : {kElse, kAllowed, kOneOf}) {
      if (words.starts_with(separator)) skip = separator.size();
    }
    out += skip > 0 ? std::string_view(" - ") : words.substr(0, 1);
    words.remove_prefix(std::max<size_t>(skip, 1));
  }
  return out;
}

}  // namespace quantd

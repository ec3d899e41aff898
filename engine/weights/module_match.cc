#include "engine/weights/module_match.h"

#if defined(__GNUC__) && !defined(__clang__)
// g++ 12 under sanitizers reports <regex>'s own std::function as uninitialized (GCC bug 105562).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <optional>
#include <regex>

#include "kernels/status.h"

namespace quantd {
namespace {

// libstdc++'s breadth-first matcher: no back-references, but never exponential. (The default one
// takes longer than the universe for "(a+)+b" on a name of 60 characters.)
std::optional<std::regex> Compile(const std::string& pattern, std::string* error) {
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex_constants::__polynomial);
  } catch (const std::regex_error& e) {
    if (error != nullptr) *error = e.what();
    return std::nullopt;
  }
}

bool FullMatch(const std::string& pattern, const std::string& module) {
  if (pattern.size() > kMaxPatternLength + 16 || module.size() > kMaxModuleLength) return false;
  const auto regex = Compile(pattern, nullptr);
  if (!regex) return false;
  try {
    return std::regex_match(module, *regex);
  } catch (const std::regex_error&) {
    return false;
  }
}

bool IsRegex(const std::string& pattern) { return pattern.rfind("re:", 0) == 0; }

bool EndsWith(const std::string& text, const std::string& suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

absl::Status CheckRegex(const std::string& pattern, const std::string& expression) {
  if (pattern.empty()) return InvalidArgument("an empty pattern");
  if (pattern.size() > kMaxPatternLength) {
    return InvalidArgument("a pattern of {} characters, at most {}", pattern.size(),
                           kMaxPatternLength);
  }
  std::string error;
  if (!Compile(expression, &error)) {
    return InvalidArgument("\"{}\" is not a regular expression: {}", pattern, error);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckSkipPattern(const std::string& pattern) {
  return CheckRegex(pattern, IsRegex(pattern) ? pattern.substr(3) : pattern);
}

absl::Status CheckOverridePattern(const std::string& pattern) {
  return CheckRegex(pattern, IsRegex(pattern) ? pattern.substr(3) : "");
}

bool SkipMatches(const std::string& pattern, const std::string& module) {
  if (IsRegex(pattern)) return FullMatch(pattern.substr(3), module);
  return EndsWith(module, pattern) || FullMatch("(?:" + pattern + ")(?:\\..*)?", module);
}

bool OverrideMatches(const std::string& pattern, const std::string& module) {
  if (IsRegex(pattern)) return FullMatch(pattern.substr(3), module);
  return module == pattern || EndsWith(module, "." + pattern);
}

}  // namespace quantd

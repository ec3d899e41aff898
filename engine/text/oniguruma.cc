// From Oniguruma's syntax to PCRE2's; see oniguruma.h.
//
// Where the two agree text is copied. Known differences: \s (PCRE2 has U+180E, which is no white
// space since Unicode 6.3), \w, \v, scripts (PCRE2 means script extensions), sets in sets, &&,
// "{n}+" (a repeated repeat in Oniguruma, possessive in PCRE2), "{n}?" (optional, lazy), "{,n}",
// and the scope of (?i) in alternatives. Sources: Oniguruma's doc/RE, pcre2pattern(3).
#include "engine/text/oniguruma.h"

#include "kernels/status.h"

namespace quantd {
namespace {

// White_Space, and what it leaves, for use inside [].
constexpr std::string_view kSpace =
    R"(\x09-\x0d\x20\x85\xa0\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x00-\x08\x0e-\x1f\x21-\x84\x86-\x9f\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}
bool IsAlnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        RETURN_IF_ERROR(Escape());
      } else if (in_set_) {
        RETURN_IF_ERROR(InSet(c));
      } else {
        RETURN_IF_ERROR(OutsideSet(c));
      }
    }
    if (in_set_) return Refuse("[ without ]");
    return std::move(out_);
  }

 private:
  absl::Status Refuse(std::string_view what) const {
    return Unimplemented("pattern {:?}: {} (at byte {}) is not supported", pattern_, what, at_);
  }
  bool StartsWith(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  void Copy(size_t size) {
    out_ += pattern_.substr(at_, size);
    at_ += size;
  }
  void Replace(size_t size, std::string_view by) {
    out_ += by;
    at_ += size;
  }
  // A set of its own, or part of the one that is open.
  void ReplaceBySet(size_t size, std::string_view members) {
    Replace(size, in_set_ ? std::string(members) : fmt::format("[{}]", members));
  }

  absl::Status Escape() {
    if (at_ + 1 == pattern_.size()) return Refuse("a backslash at the end");
    const char c = pattern_[at_ + 1];
    switch (c) {
      case 's': ReplaceBySet(2, kSpace); return absl::OkStatus();
      case 'S': ReplaceBySet(2, kNotSpace); return absl::OkStatus();
      case 'w': ReplaceBySet(2, kWord); return absl::OkStatus();
      case 'W':
        if (in_set_) return Refuse("\\W in a set");
        Replace(2, fmt::format("[^{}]", kWord));
        return absl::OkStatus();
      case 'v': Replace(2, "\\x0b"); return absl::OkStatus();
      case 'p':
      case 'P': return Property();
      case 'u': return CodePoint(4);
      case 'x': return CodePoint(2);
      case 'A':
      case 'z':
      case 'Z':
        if (in_set_) break;
        Copy(2);
        return absl::OkStatus();
      case 'd':
      case 'D':
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e': Copy(2); return absl::OkStatus();
      default:
        if (IsAlnum(c)) break;
        Copy(1);
        CopyCodePoint();
        return absl::OkStatus();
    }
    return Refuse(fmt::format("\\{}", c));
  }

  void CopyCodePoint() {
    do {
      Copy(1);
    } while (at_ < pattern_.size() && (static_cast<unsigned char>(pattern_[at_]) & 0xC0) == 0x80);
  }

  // \x41, \x{2019} and \u2019.
  absl::Status CodePoint(size_t digits) {
    if (pattern_[at_ + 1] == 'x' && at_ + 2 < pattern_.size() && pattern_[at_ + 2] == '{') {
      const size_t end = pattern_.find('}', at_);
      if (end == std::string_view::npos) return Refuse("\\x{ without }");
      for (size_t i = at_ + 3; i < end; ++i) {
        if (!IsHex(pattern_[i])) return Refuse("more than one code point in \\x{}");
      }
      Copy(end + 1 - at_);
      return absl::OkStatus();
    }
    const std::string_view hex = pattern_.substr(at_ + 2, digits);
    bool valid = hex.size() == digits;
    for (const char c : hex) valid = valid && IsHex(c);
    // \x80 and above is a byte of UTF-8 in Oniguruma, a code point in PCRE2.
    if (!valid || (digits == 2 && hex[0] >= '8')) return Refuse("this use of \\x or \\u");
    Replace(2 + digits, fmt::format("\\x{{{}}}", hex));
    return absl::OkStatus();
  }

  absl::Status Property() {
    const size_t end = pattern_.find('}', at_);
    if (at_ + 2 >= pattern_.size() || pattern_[at_ + 2] != '{' || end == std::string_view::npos) {
      return Refuse("\\p without {}");
    }
    std::string_view name = pattern_.substr(at_ + 3, end - at_ - 3);
    const bool negated = name.starts_with('^');
    if (negated) name.remove_prefix(1);
    // Names of one or two letters are general categories in both; longer ones are scripts, but
    // these.
    const bool script = name.size() > 2 && name != "Any" && name != "Alphabetic";
    for (const char c : name) {
      if (!IsAlnum(c) && c != '_') return Refuse(fmt::format("\\p{{{}}}", name));
    }
    Replace(end + 1 - at_, fmt::format("\\{}{{{}{}{}}}", pattern_[at_ + 1], negated ? "^" : "",
                                       script ? "sc:" : "", name));
    return absl::OkStatus();
  }

  absl::Status InSet(char c) {
    if (c == '[') return Refuse(StartsWith("[:") ? "a POSIX class" : "a set in a set");
    if (StartsWith("&&")) return Refuse("&& in a set");
    if (c == ']') {
      if (at_ == set_start_) return Refuse("an empty set");
      in_set_ = false;
    }
    CopyCodePoint();
    return absl::OkStatus();
  }

  absl::Status OutsideSet(char c) {
    if (c == '[') {
      in_set_ = true;
      Copy(StartsWith("[^") ? 2 : 1);
      set_start_ = at_;
      return absl::OkStatus();
    }
    if (c == '{') return Interval();
    if (c == '(') return Group();
    CopyCodePoint();
    return absl::OkStatus();
  }

  absl::Status Interval() {
    const size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) return Refuse("{ without }");
    const std::string_view inside = pattern_.substr(at_ + 1, end - at_ - 1);
    bool comma = false;
    for (size_t i = 0; i < inside.size(); ++i) {
      const bool first_comma = inside[i] == ',' && !comma && i > 0;
      if (!first_comma && (inside[i] < '0' || inside[i] > '9')) return Refuse("this use of {");
      comma = comma || first_comma;
    }
    const char next = end + 1 < pattern_.size() ? pattern_[end + 1] : '\0';
    if (inside.empty() || next == '+' || (next == '?' && !comma)) return Refuse("this use of {}");
    Copy(end + 1 - at_);
    return absl::OkStatus();
  }

  absl::Status Group() {
    if (StartsWith("(*")) return Refuse("(*");
    if (!StartsWith("(?")) {
      Copy(1);
      return absl::OkStatus();
    }
    for (const std::string_view known : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:"}) {
      if (StartsWith(known)) {
        Copy(known.size());
        return absl::OkStatus();
      }
    }
    if (at_ == 0 && StartsWith("(?i)")) {
      Copy(4);
      return absl::OkStatus();
    }
    return Refuse(fmt::format("{}...", pattern_.substr(at_, 4)));
  }

  std::string_view pattern_;
  size_t at_ = 0;
  std::string out_;
  bool in_set_ = false;
  size_t set_start_ = 0;  // where the first member of the open set is
};

}  // namespace

absl::StatusOr<std::string> OnigurumaToPcre2(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace quantd

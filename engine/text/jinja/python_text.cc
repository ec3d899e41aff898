// Python's strings over UTF-8; see python_text.h.
#include "engine/text/jinja/python_text.h"

#include <string.h>
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <limits>

#include "engine/text/utf8.h"

namespace quantd::jinja {
namespace {

bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 ||
         c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
         c == 0x205F || c == 0x3000;
}

bool IsLineEnd(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

UChar32 CodePoint(std::string_view character) {
  return static_cast<UChar32>(NextUtf8(character).code_point);
}

std::string FromUnicode(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

icu::UnicodeString ToUnicode(std::string_view text) {
  return icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

std::string Upper(std::string_view text) {
  return FromUnicode(ToUnicode(text).toUpper(icu::Locale::getRoot()));
}
std::string Lower(std::string_view text) {
  return FromUnicode(ToUnicode(text).toLower(icu::Locale::getRoot()));
}
// The title case of one character.
std::string Title(std::string_view character) {
  if (character.size() == 1) return Upper(character);
  icu::UnicodeString text = ToUnicode(character);
  return FromUnicode(text.toTitle(nullptr, icu::Locale::getRoot()));
}

bool HasCaseAt(UChar32 c) { return u_isUUppercase(c) || u_isULowercase(c) || u_istitle(c); }

}  // namespace

size_t LeadingSpace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Unit unit = NextUtf8(text.substr(at));
    if (!IsSpace(unit.code_point)) break;
    at += unit.size;
  }
  return at;
}

size_t TrailingSpace(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    const size_t at = PreviousUtf8(text, end);
    if (!IsSpace(NextUtf8(text.substr(at)).code_point)) break;
    end = at;
  }
  return text.size() - end;
}

std::string_view Strip(std::string_view text, const std::string* characters, bool left,
                       bool right) {
  if (characters == nullptr) {
    if (left) text.remove_prefix(LeadingSpace(text));
    if (right) text.remove_suffix(TrailingSpace(text));
    return text;
  }
  std::vector<std::string_view> set = Characters(*characters);
  std::sort(set.begin(), set.end());
  const auto in_set = [&](std::string_view c) {
    return std::binary_search(set.begin(), set.end(), c);
  };
  while (left && !text.empty()) {
    const size_t size = NextUtf8(text).size;
    if (!in_set(text.substr(0, size))) break;
    text.remove_prefix(size);
  }
  while (right && !text.empty()) {
    const size_t at = PreviousUtf8(text, text.size());
    if (!in_set(text.substr(at))) break;
    text = text.substr(0, at);
  }
  return text;
}

int64_t Length(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

std::vector<std::string_view> Characters(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t at = 0; at < text.size(); at += out.back().size()) {
    out.push_back(text.substr(at, NextUtf8(text.substr(at)).size));
  }
  return out;
}

size_t OffsetOf(std::string_view text, int64_t index) {
  size_t at = 0;
  for (int64_t i = 0; i < index && at < text.size(); ++i) at += NextUtf8(text.substr(at)).size;
  return at;
}

size_t Find(std::string_view text, std::string_view pattern, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  // glibc's memmem is linear for every pattern, unlike string_view::find.
  const void* found =
      memmem(text.data() + from, text.size() - from, pattern.data(), pattern.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

bool Replace(std::string_view text, std::string_view from, std::string_view to, int64_t count,
             size_t limit, std::string* out) {
  size_t done = 0;
  if (from.empty()) {  // before every character, and at the end
    for (; count != 0 && done <= text.size(); --count) {
      *out += to;
      if (out->size() > limit) return false;
      if (done == text.size()) return true;
      const size_t size = NextUtf8(text.substr(done)).size;
      *out += text.substr(done, size);
      done += size;
    }
  } else {
    for (; count != 0; --count) {
      const size_t at = Find(text, from, done);
      if (at == std::string_view::npos) break;
      *out += text.substr(done, at - done);
      *out += to;
      if (out->size() > limit) return false;
      done = at + from.size();
    }
  }
  *out += text.substr(done);
  return out->size() <= limit;
}

std::vector<std::string_view> Split(std::string_view text, std::string_view separator,
                                    int64_t max_splits, bool from_right) {
  std::vector<std::string_view> out;
  if (max_splits < 0) max_splits = std::numeric_limits<int64_t>::max();
  if (from_right) {
    while (true) {
      if (separator.empty()) text.remove_suffix(TrailingSpace(text));
      if (separator.empty() && text.empty()) break;
      size_t end = text.size();  // of what comes before the last part
      size_t part = 0;
      bool found = false;
      if (separator.empty()) {
        size_t at = text.size();
        while (at > 0 && !found) {
          const size_t previous = PreviousUtf8(text, at);
          if (IsSpace(NextUtf8(text.substr(previous)).code_point)) {
            found = true;
            end = previous;
            part = at;
          } else {
            at = previous;
          }
        }
      } else {
        end = text.rfind(separator);
        found = end != std::string_view::npos;
        part = end + separator.size();
      }
      if (!found || static_cast<int64_t>(out.size()) == max_splits) {
        if (separator.empty()) text.remove_prefix(found ? 0 : LeadingSpace(text));
        out.push_back(text);
        break;
      }
      out.push_back(text.substr(part));
      text = text.substr(0, end);
    }
    std::reverse(out.begin(), out.end());
    return out;
  }
  while (true) {
    if (separator.empty()) text.remove_prefix(LeadingSpace(text));
    if (separator.empty() && text.empty()) break;
    size_t end = 0, next = 0;
    if (separator.empty()) {
      while (end < text.size() && LeadingSpace(text.substr(end)) == 0) {
        end += NextUtf8(text.substr(end)).size;
      }
      next = end;
    } else {
      end = std::min(Find(text, separator), text.size());
      next = end + separator.size();
    }
    if (end == text.size() || static_cast<int64_t>(out.size()) == max_splits) {
      out.push_back(text);
      break;
    }
    out.push_back(text.substr(0, end));
    text.remove_prefix(next);
  }
  return out;
}

std::vector<std::string_view> SplitLines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const Utf8Unit unit = NextUtf8(text.substr(at));
    size_t next = at + unit.size;
    if (IsLineEnd(unit.code_point)) {
      if (unit.code_point == '\r' && next < text.size() && text[next] == '\n') ++next;
      out.push_back(text.substr(begin, (keep_ends ? next : at) - begin));
      begin = next;
    }
    at = next;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

std::string ChangeCase(std::string_view text, Case to) {
  if (to == Case::kUpper) return Upper(text);
  if (to == Case::kLower) return Lower(text);
  std::string out;
  bool inside = false;  // a word that has begun
  for (const std::string_view character : Characters(text)) {
    const UChar32 c = CodePoint(character);
    switch (to) {
      case Case::kSwap: out += u_isUUppercase(c) ? Lower(character) : Upper(character); break;
      case Case::kCapitalize:
        out += inside ? Lower(character) : Title(character);
        inside = true;
        break;
      default: out += inside ? Lower(character) : Title(character); inside = HasCaseAt(c);
    }
  }
  return out;
}

bool AllAre(std::string_view text, Class which) {
  if (text.empty()) return false;
  for (const std::string_view character : Characters(text)) {
    const UChar32 c = CodePoint(character);
    const bool alpha = (U_GET_GC_MASK(c) & U_GC_L_MASK) != 0;
    const bool digit = u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE) == U_NT_DECIMAL ||
                       u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE) == U_NT_DIGIT;
    const bool numeric = u_getIntPropertyValue(c, UCHAR_NUMERIC_TYPE) != U_NT_NONE;
    switch (which) {
      case Class::kAlpha:
        if (!alpha) return false;
        break;
      case Class::kDigit:
        if (!digit) return false;
        break;
      case Class::kAlnum:
        if (!alpha && !numeric) return false;
        break;
      case Class::kSpace:
        if (!IsSpace(static_cast<char32_t>(c))) return false;
        break;
    }
  }
  return true;
}

bool HasCase(std::string_view text, bool upper) {
  bool any = false;
  for (const std::string_view character : Characters(text)) {
    const UChar32 c = CodePoint(character);
    if (upper ? u_isULowercase(c) || u_istitle(c) : u_isUUppercase(c) || u_istitle(c)) return false;
    any = any || (upper ? u_isUUppercase(c) : u_isULowercase(c));
  }
  return any;
}

}  // namespace quantd::jinja

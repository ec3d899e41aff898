// The lexer; see lexer.h. Source of the rules: Jinja's lexer.py and its documentation on whitespace
// control.
#include "engine/text/jinja/lexer.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>

#include "engine/text/jinja/python_text.h"
#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

constexpr std::string_view kOperators[] = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "/",
                                           "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                           ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<uint8_t>(c) >= 0x80;
}

void AppendUtf8(uint32_t code_point, std::string* out) {
  if (code_point < 0x80) {
    *out += static_cast<char>(code_point);
    return;
  }
  const int more = code_point < 0x800 ? 1 : code_point < 0x10000 ? 2 : 3;
  constexpr uint8_t kFirst[] = {0, 0xC0, 0xE0, 0xF0};
  *out += static_cast<char>(kFirst[more] | code_point >> (6 * more));
  for (int shift = 6 * (more - 1); shift >= 0; shift -= 6) {
    *out += static_cast<char>(0x80 | ((code_point >> shift) & 0x3F));
  }
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) {
    // Newlines of all kinds are one, and the last one of a file is not part of the template.
    for (size_t i = 0; i < source.size(); ++i) {
      if (source[i] == '\r') {
        text_ += '\n';
        if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      } else {
        text_ += source[i];
      }
    }
    if (text_.ends_with('\n')) text_.pop_back();
  }

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < text_.size()) RETURN_IF_ERROR(Data());
    Add(Token::Kind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  absl::Status Fail(std::string_view what) const {
    return InvalidArgument("line {}: {}", line_, what);
  }
  std::string_view Rest() const { return std::string_view(text_).substr(at_); }
  bool Take(std::string_view expected) {
    if (!Rest().starts_with(expected)) return false;
    Advance(expected.size());
    return true;
  }
  // Moves on, counting lines, and remembers whether a line begins here.
  void Advance(size_t size) {
    const std::string_view taken = Rest().substr(0, size);
    line_ += static_cast<int>(std::count(taken.begin(), taken.end(), '\n'));
    if (!taken.empty()) line_starting_ = taken.back() == '\n';
    at_ += taken.size();
  }
  void SkipSpace() { Advance(LeadingSpace(Rest())); }
  void Add(Token::Kind kind, std::string text) {
    Token token;
    token.kind = kind;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
  }

  // Text up to the next tag, and the tag.
  absl::Status Data() {
    size_t tag = at_;
    while (true) {
      tag = text_.find('{', tag);
      if (tag == std::string::npos || tag + 1 >= text_.size()) {
        Add(Token::Kind::kData, std::string(Rest()));
        Advance(Rest().size());
        return absl::OkStatus();
      }
      const char next = text_[tag + 1];
      if (next == '{' || next == '%' || next == '#') break;
      ++tag;
    }
    const char kind = text_[tag + 1];
    std::string_view data = std::string_view(text_).substr(at_, tag - at_);
    data = BeforeTag(data, tag + 2, kind != '{');
    if (!data.empty()) Add(Token::Kind::kData, std::string(data));
    Advance(tag - at_);
    Advance(2);
    if (!Rest().empty() && (Rest()[0] == '-' || Rest()[0] == '+')) Advance(1);
    if (kind == '#') return Comment();
    if (kind == '{') return Expression(Token::Kind::kVariableBegin, Token::Kind::kVariableEnd);
    if (IsRaw()) return Raw();
    return Expression(Token::Kind::kBlockBegin, Token::Kind::kBlockEnd);
  }

  // `data` without the white space that the tag whose sign is at `sign` takes away.
  std::string_view BeforeTag(std::string_view data, size_t sign, bool lstrip) const {
    const char c = sign < text_.size() ? text_[sign] : '\0';
    if (c == '-') return data.substr(0, data.size() - TrailingSpace(data));
    if (c == '+' || !lstrip) return data;
    const size_t newline = data.rfind('\n');
    const size_t line = newline == std::string_view::npos ? 0 : newline + 1;
    if (line == 0 && !line_starting_) return data;
    const std::string_view last = data.substr(line);
    return LeadingSpace(last) == last.size() ? data.substr(0, line) : data;
  }

  // After a tag's end: what "-" takes, or the newline that trim_blocks takes.
  void AfterTag(bool minus, bool trim) {
    if (minus) {
      SkipSpace();
    } else if (trim) {
      Take("\n");
    }
  }

  absl::Status Comment() {
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) return Fail("a comment without #}");
    const char sign = end > at_ ? text_[end - 1] : '\0';
    Advance(end + 2 - at_);
    AfterTag(sign == '-', sign != '+');
    return absl::OkStatus();
  }

  bool IsRaw() const {
    std::string_view rest = Rest();
    rest.remove_prefix(LeadingSpace(rest));
    if (!rest.starts_with("raw")) return false;
    rest.remove_prefix(3);
    rest.remove_prefix(LeadingSpace(rest));
    return rest.starts_with("%}") || rest.starts_with("-%}");
  }

  // {% raw %} ... {% endraw %}: no newline is trimmed after the first.
  absl::Status Raw() {
    const size_t close = text_.find("%}", at_);
    const bool minus = text_[close - 1] == '-';
    Advance(close + 2 - at_);
    AfterTag(minus, false);
    for (size_t tag = at_; (tag = text_.find("{%", tag)) != std::string::npos; tag += 2) {
      std::string_view rest = std::string_view(text_).substr(tag + 2);
      if (rest.starts_with('-') || rest.starts_with('+')) rest.remove_prefix(1);
      rest.remove_prefix(LeadingSpace(rest));
      if (!rest.starts_with("endraw")) continue;
      rest.remove_prefix(6);
      rest.remove_prefix(LeadingSpace(rest));
      const char sign = rest.empty() ? '\0' : rest[0];
      if (sign == '-' || sign == '+') rest.remove_prefix(1);
      if (!rest.starts_with("%}")) continue;
      const std::string_view data =
          BeforeTag(std::string_view(text_).substr(at_, tag - at_), tag + 2, true);
      if (!data.empty()) Add(Token::Kind::kData, std::string(data));
      Advance(text_.size() - rest.size() + 2 - at_);
      AfterTag(sign == '-', sign != '+');
      return absl::OkStatus();
    }
    return Fail("{% raw %} without {% endraw %}");
  }

  absl::Status Expression(Token::Kind begin, Token::Kind end) {
    const std::string_view close = end == Token::Kind::kBlockEnd ? "%}" : "}}";
    Add(begin, "");
    std::string open;  // brackets: inside them "}}" does not end the tag
    while (true) {
      SkipSpace();
      const std::string_view rest = Rest();
      if (rest.empty()) return Fail(fmt::format("a tag without {}", close));
      if (open.empty()) {
        const bool sign = rest[0] == '-' || (rest[0] == '+' && end == Token::Kind::kBlockEnd);
        if (rest.substr(sign ? 1 : 0).starts_with(close)) {
          Add(end, "");
          const char c = rest[0];
          Advance(close.size() + (sign ? 1 : 0));
          AfterTag(sign && c == '-', end == Token::Kind::kBlockEnd && !(sign && c == '+'));
          return absl::OkStatus();
        }
      }
      if (IsDigit(rest[0])) {
        RETURN_IF_ERROR(Number());
      } else if (IsNameStart(rest[0])) {
        size_t size = 1;
        while (size < rest.size() && (IsNameStart(rest[size]) || IsDigit(rest[size]))) ++size;
        Add(Token::Kind::kName, std::string(rest.substr(0, size)));
        Advance(size);
      } else if (rest[0] == '\'' || rest[0] == '"') {
        RETURN_IF_ERROR(QuotedString());
      } else {
        RETURN_IF_ERROR(Operator(&open));
      }
    }
  }

  absl::Status Operator(std::string* open) {
    const std::string_view rest = Rest();
    const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                     [&](std::string_view o) { return rest.starts_with(o); });
    if (found == std::end(kOperators)) {
      return Fail(fmt::format("unexpected character {:?}", rest.substr(0, NextUtf8(rest).size)));
    }
    constexpr std::string_view kOpen = "([{", kClose = ")]}";
    if (kOpen.find(rest[0]) != std::string_view::npos) {
      *open += kClose[kOpen.find(rest[0])];
    } else if (kClose.find(rest[0]) != std::string_view::npos) {
      if (!open->ends_with(rest[0])) return Fail(fmt::format("unexpected '{}'", rest[0]));
      open->pop_back();
    }
    Add(Token::Kind::kOperator, std::string(*found));
    Advance(found->size());
    return absl::OkStatus();
  }

  // 12, 1_000, 0x1f, 1.5, 1e3.
  absl::Status Number() {
    const std::string_view rest = Rest();
    std::string digits;
    size_t size = 0;
    int base = 10;
    const auto take_digits = [&](const auto& is_digit) {
      while (size < rest.size() &&
             (is_digit(rest[size]) ||
              (rest[size] == '_' && size + 1 < rest.size() && is_digit(rest[size + 1])))) {
        if (rest[size] != '_') digits += rest[size];
        ++size;
      }
    };
    const char prefix =
        rest.size() > 2 && rest[0] == '0' ? static_cast<char>(rest[1] | 0x20) : '\0';
    if (prefix == 'x' || prefix == 'o' || prefix == 'b') {
      base = prefix == 'x' ? 16 : prefix == 'o' ? 8 : 2;
      size = 2;
      take_digits([](char c) { return IsDigit(c) || ((c | 0x20) >= 'a' && (c | 0x20) <= 'f'); });
    } else {
      take_digits(IsDigit);
    }
    bool is_float = false;
    if (base == 10) {
      if (size + 1 < rest.size() && rest[size] == '.' && IsDigit(rest[size + 1])) {
        is_float = true;
        digits += rest[size++];
        take_digits(IsDigit);
      }
      size_t exponent = size + 1;
      if (exponent < rest.size() && (rest[exponent] == '+' || rest[exponent] == '-')) ++exponent;
      if (size < rest.size() && (rest[size] | 0x20) == 'e' && exponent < rest.size() &&
          IsDigit(rest[exponent])) {
        is_float = true;
        digits += rest.substr(size, exponent - size);
        size = exponent;
        take_digits(IsDigit);
      }
    }
    Add(is_float ? Token::Kind::kFloat : Token::Kind::kInteger, digits);
    Token& token = tokens_.back();
    const char* end = digits.data() + digits.size();
    const auto result = is_float ? std::from_chars(digits.data(), end, token.number)
                                 : std::from_chars(digits.data(), end, token.integer, base);
    if (result.ec != std::errc() || result.ptr != end) {
      return Fail(fmt::format("number {} is out of range", rest.substr(0, size)));
    }
    Advance(size);
    return absl::OkStatus();
  }

  // With Python's escapes.
  absl::Status QuotedString() {
    const std::string_view rest = Rest();
    std::string text;
    size_t at = 1;
    while (at < rest.size() && rest[at] != rest[0]) {
      if (rest[at] != '\\') {
        text += rest[at++];
        continue;
      }
      if (at + 1 >= rest.size()) break;
      const char c = rest[at + 1];
      at += 2;
      constexpr std::string_view kNames = "abfnrtv\\'\"", kMeanings = "\a\b\f\n\r\t\v\\'\"";
      if (const size_t named = kNames.find(c); named != std::string_view::npos) {
        text += kMeanings[named];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        const std::string_view hex = rest.substr(at, digits);
        uint32_t code_point = 0;
        const auto parsed = std::from_chars(hex.data(), hex.data() + hex.size(), code_point, 16);
        const bool valid = hex.size() == digits && parsed.ec == std::errc() &&
                           parsed.ptr == hex.data() + digits && code_point <= 0x10FFFF &&
                           (code_point < 0xD800 || code_point > 0xDFFF);
        if (!valid) return Fail(fmt::format("\\{}{} in a string is no character", c, hex));
        AppendUtf8(code_point, &text);
        at += digits;
      } else if (c >= '0' && c <= '7') {
        uint32_t code_point = 0;
        --at;
        for (int i = 0; i < 3 && at < rest.size() && rest[at] >= '0' && rest[at] <= '7'; ++i) {
          code_point = code_point * 8 + static_cast<uint32_t>(rest[at++] - '0');
        }
        AppendUtf8(code_point, &text);
      } else if (c != '\n') {  // an escaped newline is none
        if (c == 'N') return Fail("\\N in a string is not supported");
        text += '\\';
        text += c;
      }
    }
    if (at >= rest.size()) return Fail("a string without its end");
    Add(Token::Kind::kString, std::move(text));
    Advance(at + 1);
    return absl::OkStatus();
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  // a line begins here, or tags before it have taken its newline
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace quantd::jinja

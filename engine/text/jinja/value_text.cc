// Values as text: Python's str, repr and json.dumps; see value.h.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/text/jinja/value.h"
#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

// The shortest decimal that reads back as the same number, written as Python's repr does: an
// exponent below 1e-4 and from 1e16 on, and never without a point or an exponent.
std::string FloatText(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto scientific =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string text(buffer, scientific.ptr);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (value != 0 && (exponent < -4 || exponent >= 16)) return text;
  const auto fixed =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
  text.assign(buffer, fixed.ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

// Python's repr of a string, but that what is not ASCII counts as printable.
void AppendQuoted(const std::string& text, std::string* out) {
  const bool single = text.find('\'') != std::string::npos && text.find('"') == std::string::npos;
  const char quote = single ? '"' : '\'';
  *out += quote;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (c == quote || c == '\\') {
      *out += '\\';
      *out += c;
    } else if (c == '\n') {
      *out += "\\n";
    } else if (c == '\r') {
      *out += "\\r";
    } else if (c == '\t') {
      *out += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      *out += fmt::format("\\x{:02x}", byte);
    } else {
      *out += c;
    }
  }
  *out += quote;
}

void AppendRepr(const Value& value, std::string* out) {
  if (const std::string* text = value.text()) return AppendQuoted(*text, out);
  if (const List* list = value.As<List>()) {
    *out += (*list)->tuple ? '(' : '[';
    bool first = true;
    for (const Value& item : (*list)->items) {
      if (!std::exchange(first, false)) *out += ", ";
      AppendRepr(item, out);
    }
    if ((*list)->tuple && (*list)->items.size() == 1) *out += ',';
    *out += (*list)->tuple ? ')' : ']';
    return;
  }
  if (const Dict* dict = value.As<Dict>()) {
    *out += '{';
    bool first = true;
    for (const auto& [key, item] : (*dict)->entries) {
      if (!std::exchange(first, false)) *out += ", ";
      AppendRepr(key, out);
      *out += ": ";
      AppendRepr(item, out);
    }
    *out += '}';
    return;
  }
  *out += value.undefined() ? "Undefined" : ToText(value);
}

class JsonWriter {
 public:
  JsonWriter(const JsonOptions& options, std::string* out) : options_(options), out_(out) {}

  absl::Status Write(const Value& value, int level) {
    if (value.none()) {
      *out_ += "null";
    } else if (const auto* boolean = value.As<bool>()) {
      *out_ += *boolean ? "true" : "false";
    } else if (const auto* integer = value.As<int64_t>()) {
      *out_ += fmt::format("{}", *integer);
    } else if (const auto* number = value.As<double>()) {
      *out_ += Float(*number);
    } else if (const std::string* text = value.text()) {
      WriteString(*text);
    } else if (const List* list = value.As<List>()) {
      bool first = true;
      for (const Value& item : (*list)->items) {
        *out_ += first ? "[" : options_.item_separator;
        first = false;
        NewLine(level + 1);
        RETURN_IF_ERROR(Write(item, level + 1));
      }
      if (first) {
        *out_ += "[]";
      } else {
        NewLine(level);
        *out_ += ']';
      }
    } else if (const Dict* dict = value.As<Dict>()) {
      return WriteDict(**dict, level);
    } else {
      return InvalidArgument("tojson: an object of type {} has no JSON", value.TypeName());
    }
    return absl::OkStatus();
  }

 private:
  static std::string Float(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
    return FloatText(value);
  }

  absl::Status WriteDict(const DictData& dict, int level) {
    std::vector<std::pair<Value, Value>> sorted;
    const auto* entries = &dict.entries;
    if (options_.sort_keys) {
      sorted = dict.entries;
      absl::Status status;
      std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) {
        const auto order = Compare(a.first, b.first);
        if (!order.ok()) status = order.status();
        return order.ok() && *order < 0;
      });
      RETURN_IF_ERROR(status);
      entries = &sorted;
    }
    bool first = true;
    for (const auto& [key, item] : *entries) {
      *out_ += first ? "{" : options_.item_separator;
      first = false;
      NewLine(level + 1);
      if (const std::string* text = key.text()) {
        WriteString(*text);
      } else if (key.Depth() > 0 || key.undefined()) {
        return InvalidArgument("tojson: a key of type {}", key.TypeName());
      } else {
        *out_ += '"';
        RETURN_IF_ERROR(Write(key, level));
        *out_ += '"';
      }
      *out_ += options_.key_separator;
      RETURN_IF_ERROR(Write(item, level + 1));
    }
    if (first) {
      *out_ += "{}";
    } else {
      NewLine(level);
      *out_ += '}';
    }
    return absl::OkStatus();
  }

  void NewLine(int level) {
    if (!options_.indented) return;
    *out_ += '\n';
    for (int i = 0; i < level; ++i) *out_ += options_.indent;
  }

  void WriteString(const std::string& text) {
    *out_ += '"';
    for (size_t at = 0; at < text.size();) {
      const Utf8Unit unit = NextUtf8(std::string_view(text).substr(at));
      const std::string_view bytes = std::string_view(text).substr(at, unit.size);
      at += unit.size;
      const char32_t c = unit.code_point;
      switch (c) {
        case '"': *out_ += "\\\""; break;
        case '\\': *out_ += "\\\\"; break;
        case '\n': *out_ += "\\n"; break;
        case '\r': *out_ += "\\r"; break;
        case '\t': *out_ += "\\t"; break;
        case '\f': *out_ += "\\f"; break;
        case '\b': *out_ += "\\b"; break;
        default:
          if (c >= 0x20 && (c < 0x7F || !options_.ensure_ascii)) {
            *out_ += bytes;
          } else if (c >= 0x10000) {
            const uint32_t rest = static_cast<uint32_t>(c) - 0x10000;
            *out_ +=
                fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (rest >> 10), 0xDC00 + (rest & 0x3FF));
          } else {
            *out_ += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
          }
      }
    }
    *out_ += '"';
  }

  const JsonOptions& options_;
  std::string* out_;
};

}  // namespace

std::string ToText(const Value& value) {
  if (const std::string* text = value.text()) return *text;
  if (value.undefined()) return "";
  if (value.none()) return "None";
  if (const auto* boolean = value.As<bool>()) return *boolean ? "True" : "False";
  if (const auto* integer = value.As<int64_t>()) return fmt::format("{}", *integer);
  if (const auto* number = value.As<double>()) return FloatText(*number);
  if (value.Is<List>() || value.Is<Dict>()) return Repr(value);
  if (const auto* callable = value.As<std::shared_ptr<const Callable>>()) {
    return fmt::format("<function {}>", (*callable)->name);
  }
  return fmt::format("<{}>", value.TypeName());
}

std::string Repr(const Value& value) {
  std::string out;
  AppendRepr(value, &out);
  return out;
}

absl::StatusOr<std::string> ToJson(const Value& value, const JsonOptions& options) {
  std::string out;
  RETURN_IF_ERROR(JsonWriter(options, &out).Write(value, 0));
  return out;
}

}  // namespace quantd::jinja

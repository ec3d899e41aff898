// Filters of texts, numbers and any value; see interpreter.h. Those of lists are in
// sequence_filters.cc.
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {

absl::Status BadArguments(std::string_view filter) {
  return InvalidArgument("the filter '{}': these arguments do not fit", filter);
}

namespace {

// Python's int(text) and float(text); false where it raises.
bool ParseInt(std::string_view text, int64_t* out) {
  std::string digits;
  for (const char c : Strip(text, nullptr, true, true)) {
    if (c != '_') digits += c;
  }
  const char* begin = digits.data() + (digits.starts_with('+') ? 1 : 0);
  const auto result = std::from_chars(begin, digits.data() + digits.size(), *out);
  return !digits.empty() && result.ec == std::errc() && result.ptr == digits.data() + digits.size();
}
bool ParseFloat(std::string_view text, double* out) {
  const std::string_view stripped = Strip(text, nullptr, true, true);
  const char* begin = stripped.data() + (stripped.starts_with('+') ? 1 : 0);
  const char* end = stripped.data() + stripped.size();
  const auto result = std::from_chars(begin, end, *out);
  return !stripped.empty() && result.ec == std::errc() && result.ptr == end;
}

}  // namespace

Interpreter::Filter Interpreter::FindTextFilter(std::string_view name) {
  static constexpr std::pair<std::string_view, Filter> kFilters[] = {
      {"abs", &Interpreter::FilterAbs},
      {"attr", &Interpreter::FilterAttr},
      {"capitalize", &Interpreter::FilterCapitalize},
      {"d", &Interpreter::FilterDefault},
      {"default", &Interpreter::FilterDefault},
      {"e", &Interpreter::FilterEscape},
      {"escape", &Interpreter::FilterEscape},
      {"float", &Interpreter::FilterFloat},
      {"indent", &Interpreter::FilterIndent},
      {"int", &Interpreter::FilterInt},
      {"lower", &Interpreter::FilterLower},
      {"replace", &Interpreter::FilterReplace},
      {"round", &Interpreter::FilterRound},
      {"safe", &Interpreter::FilterString},
      {"string", &Interpreter::FilterString},
      {"title", &Interpreter::FilterTitle},
      {"tojson", &Interpreter::FilterToJson},
      {"trim", &Interpreter::FilterTrim},
      {"upper", &Interpreter::FilterUpper},
  };
  for (const auto& [known, filter] : kFilters) {
    if (known == name) return filter;
  }
  return nullptr;
}

absl::StatusOr<Value> Interpreter::ApplyFilter(const std::string& name, const Value& value,
                                               const Arguments& arguments) {
  RETURN_IF_ERROR(ChargeBytes(value.Weight()));
  Filter filter = FindTextFilter(name);
  if (filter == nullptr) filter = FindSequenceFilter(name);
  if (filter == nullptr) return Unsupported(fmt::format("the filter '{}'", name));
  return (this->*filter)(value, arguments);
}

absl::StatusOr<Value> Interpreter::FilterToJson(const Value& value, const Arguments& arguments) {
  JsonOptions options;
  if (const Value* ascii = arguments.Get(0, "ensure_ascii")) options.ensure_ascii = ascii->Truth();
  if (const Value* indent = arguments.Get(1, "indent"); indent != nullptr && !indent->none()) {
    int64_t width = 0;
    options.indented = true;
    options.item_separator.assign(1, ',');
    if (indent->text() != nullptr && indent->text()->size() <= 64) {
      options.indent = *indent->text();
    } else if (indent->Integer(&width) && width <= 64) {
      options.indent.assign(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
    } else {
      return BadArguments("tojson");
    }
  }
  if (const Value* both = arguments.Get(2, "separators"); both != nullptr && !both->none()) {
    const List* pair = both->As<List>();
    if (pair == nullptr || (*pair)->items.size() != 2 || (*pair)->items[0].text() == nullptr ||
        (*pair)->items[1].text() == nullptr || both->Weight() > 64) {
      return BadArguments("tojson");
    }
    options.item_separator = *(*pair)->items[0].text();
    options.key_separator = *(*pair)->items[1].text();
  }
  if (const Value* sort = arguments.Get(3, "sort_keys")) options.sort_keys = sort->Truth();
  // Each value may get a line of its own, as deep as it is; each byte may be escaped.
  const auto widest = static_cast<int64_t>(options.indent.size()) * value.Depth();
  RETURN_IF_ERROR(ChargeMemory(value.Weight() * (2 + (options.indented ? widest : 0))));
  RETURN_IF_ERROR(ChargeBytes(value.Weight() * (16 + widest)));
  ASSIGN_OR_RETURN(std::string json, ToJson(value, options));
  return Text(std::move(json));
}

absl::StatusOr<Value> Interpreter::FilterTrim(const Value& value, const Arguments& arguments) {
  const Value* characters = arguments.Get(0, "chars");
  const bool given = characters != nullptr && !characters->none();
  if (given && characters->text() == nullptr) return BadArguments("trim");
  return Text(std::string(Strip(ToText(value), given ? characters->text() : nullptr, true, true)));
}

absl::StatusOr<Value> Interpreter::FilterReplace(const Value& value, const Arguments& arguments) {
  const Value *from = arguments.Get(0, "old"), *to = arguments.Get(1, "new");
  if (from == nullptr || to == nullptr) return BadArguments("replace");
  Arguments texts;
  texts.positional = {Value::Of(ToText(*from)), Value::Of(ToText(*to))};
  if (const Value* count = arguments.Get(2, "count"); count != nullptr && !count->none()) {
    texts.positional.push_back(*count);
  }
  return StringMethod(ToText(value), "replace", texts);
}

absl::StatusOr<Value> Interpreter::FilterIndent(const Value& value, const Arguments& arguments) {
  std::string indent(4, ' ');
  if (const Value* width = arguments.Get(0, "width")) {
    int64_t columns = 0;
    if (width->text() != nullptr) {
      indent = *width->text();
    } else if (width->Integer(&columns) && columns <= 1024) {
      indent.assign(static_cast<size_t>(std::max<int64_t>(columns, 0)), ' ');
    } else {
      return BadArguments("indent");
    }
  }
  const Value *first = arguments.Get(1, "first"), *blank = arguments.Get(2, "blank");
  std::string text = ToText(value);
  text += '\n';
  std::string out;
  if (first != nullptr && first->Truth()) out = indent;
  const std::vector<std::string_view> lines = SplitLines(text, false);
  RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(lines.size() * (indent.size() + 16))));
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out += '\n';
      if (!lines[i].empty() || (blank != nullptr && blank->Truth())) out += indent;
    }
    out += lines[i];
  }
  return Text(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterEscape(const Value& value, const Arguments&) {
  std::string out;
  for (const char c : ToText(value)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '\'': out += "&#39;"; break;
      case '"': out += "&#34;"; break;
      default: out += c;
    }
  }
  return Text(std::move(out));
}

// Words begin after white space and the brackets that Jinja names, not after every other character
// as in str.title.
absl::StatusOr<Value> Interpreter::FilterTitle(const Value& value, const Arguments&) {
  const std::string text = ToText(value);
  constexpr std::string_view kBefore = "-({[<";
  std::string out;
  bool first = true;
  for (const std::string_view character : Characters(text)) {
    const bool between =
        LeadingSpace(character) > 0 || kBefore.find(character) != std::string_view::npos;
    out += between ? std::string(character)
                   : ChangeCase(character, first ? Case::kUpper : Case::kLower);
    first = between;
  }
  return Text(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterUpper(const Value& value, const Arguments&) {
  return Text(ChangeCase(ToText(value), Case::kUpper));
}
absl::StatusOr<Value> Interpreter::FilterLower(const Value& value, const Arguments&) {
  return Text(ChangeCase(ToText(value), Case::kLower));
}
absl::StatusOr<Value> Interpreter::FilterCapitalize(const Value& value, const Arguments&) {
  return Text(ChangeCase(ToText(value), Case::kCapitalize));
}
absl::StatusOr<Value> Interpreter::FilterString(const Value& value, const Arguments&) {
  return Text(ToText(value));
}

absl::StatusOr<Value> Interpreter::FilterInt(const Value& value, const Arguments& arguments) {
  const Value* otherwise = arguments.Get(0, "default");
  if (arguments.Get(1, "base") != nullptr) return Unsupported("a base of the filter 'int'");
  int64_t integer = 0;
  double number = 0;
  if (value.Integer(&integer)) return Value::Of(integer);
  const std::string* text = value.text();
  if (text != nullptr && ParseInt(*text, &integer)) return Value::Of(integer);
  const bool is_number = value.Number(&number) || (text != nullptr && ParseFloat(*text, &number));
  if (is_number && std::abs(number) < 9e18) return Value::Of(static_cast<int64_t>(number));
  return otherwise == nullptr ? Value::Of(int64_t{0}) : *otherwise;
}

absl::StatusOr<Value> Interpreter::FilterFloat(const Value& value, const Arguments& arguments) {
  const Value* otherwise = arguments.Get(0, "default");
  double number = 0;
  if (value.Number(&number)) return Value::Of(number);
  if (value.text() != nullptr && ParseFloat(*value.text(), &number)) return Value::Of(number);
  return otherwise == nullptr ? Value::Of(0.0) : *otherwise;
}

absl::StatusOr<Value> Interpreter::FilterAbs(const Value& value, const Arguments&) {
  int64_t integer = 0;
  double number = 0;
  if (value.Integer(&integer)) return integer < 0 ? Unary("-", value) : Value::Of(integer);
  if (value.Number(&number)) return Value::Of(std::abs(number));
  return InvalidArgument("bad operand type for abs(): '{}'", value.TypeName());
}

absl::StatusOr<Value> Interpreter::FilterRound(const Value& value, const Arguments& arguments) {
  const Value *precision = arguments.Get(0, "precision"), *method = arguments.Get(1, "method");
  int64_t digits = 0;
  double number = 0;
  if (!value.Number(&number) || (precision != nullptr && !precision->Integer(&digits)) ||
      digits < -300 || digits > 300) {
    return BadArguments("round");
  }
  const std::string how = method == nullptr ? "common" : ToText(*method);
  if (how == "ceil" || how == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(digits));
    const double scaled = number * scale;
    return Value::Of((how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (how != "common") return BadArguments("round");
  if (value.Is<int64_t>() && digits >= 0) return value;
  if (digits < 0) return Unsupported("a negative precision of the filter 'round'");
  // printf rounds the exact value, half to even, as Python does.
  const std::string text = fmt::format("{:.{}f}", number, digits);
  return Value::Of(std::strtod(text.c_str(), nullptr));
}

absl::StatusOr<Value> Interpreter::FilterDefault(const Value& value, const Arguments& arguments) {
  const Value *otherwise = arguments.Get(0, "default_value"),
              *boolean = arguments.Get(1, "boolean");
  const bool use = value.undefined() || (boolean != nullptr && boolean->Truth() && !value.Truth());
  if (!use) return value;
  return otherwise == nullptr ? Value::Of(std::string()) : *otherwise;
}

absl::StatusOr<Value> Interpreter::FilterAttr(const Value& value, const Arguments& arguments) {
  const Value* name = arguments.Get(0, "name");
  if (name == nullptr || name->text() == nullptr) return BadArguments("attr");
  if (value.Is<Dict>()) {  // attributes only, not keys
    return Value::Missing(fmt::format("'dict object' has no attribute '{}'", *name->text()));
  }
  return Attribute(value, *name->text());
}

}  // namespace quantd::jinja

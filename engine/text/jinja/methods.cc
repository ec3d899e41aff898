// Methods of strings, lists and dicts, as Python has them; see interpreter.h.
#include <algorithm>
#include <charconv>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 28;

absl::Status BadMethodArguments(std::string_view method) {
  return InvalidArgument("{}(): these arguments do not fit", method);
}

// Offset and length, in bytes, of the characters [start, stop) that two optional arguments name.
bool CharacterRange(const std::string& text, const Arguments& arguments, size_t first,
                    size_t* begin, size_t* end) {
  const int64_t size = Length(text);
  int64_t bounds[2] = {0, size};
  for (size_t i = 0; i < 2; ++i) {
    const Value* value = arguments.Get(first + i, "");
    if (value == nullptr || value->none()) continue;
    if (!value->Integer(&bounds[i])) return false;
    if (bounds[i] < 0) bounds[i] += size;
    bounds[i] = std::clamp<int64_t>(bounds[i], 0, size);
  }
  *begin = OffsetOf(text, bounds[0]);
  *end = bounds[1] < bounds[0] ? *begin : OffsetOf(text, bounds[1]);
  return true;
}

}  // namespace

absl::StatusOr<Value> Interpreter::CallMethod(const Callable& method, const Arguments& arguments) {
  if (const std::string* text = method.self.text()) {
    RETURN_IF_ERROR(ChargeBytes(method.self.Weight()));
    return StringMethod(*text, method.name, arguments);
  }
  if (const List* list = method.self.As<List>()) return ListMethod(**list, method.name, arguments);
  if (const Dict* dict = method.self.As<Dict>()) return DictMethod(**dict, method.name, arguments);
  // loop.cycle
  const auto* loop = method.self.As<std::shared_ptr<const LoopState>>();
  if (loop == nullptr || arguments.positional.empty()) return BadMethodArguments(method.name);
  const auto count = static_cast<int64_t>(arguments.positional.size());
  return arguments.positional[static_cast<size_t>((*loop)->index0 % count)];
}

absl::StatusOr<Value> Interpreter::StringMethod(const std::string& text, const std::string& name,
                                                const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const bool given = first != nullptr && !first->none();
    if (given && first->text() == nullptr) return BadMethodArguments(name);
    return Text(std::string(
        Strip(text, given ? first->text() : nullptr, name != "rstrip", name != "lstrip")));
  }
  if (name == "upper") return Text(ChangeCase(text, Case::kUpper));
  if (name == "lower") return Text(ChangeCase(text, Case::kLower));
  if (name == "title") return Text(ChangeCase(text, Case::kTitle));
  if (name == "capitalize") return Text(ChangeCase(text, Case::kCapitalize));
  if (name == "swapcase") return Text(ChangeCase(text, Case::kSwap));
  if (name == "isalpha") return Value::Of(AllAre(text, Class::kAlpha));
  if (name == "isdigit") return Value::Of(AllAre(text, Class::kDigit));
  if (name == "isalnum") return Value::Of(AllAre(text, Class::kAlnum));
  if (name == "isspace") return Value::Of(AllAre(text, Class::kSpace));
  if (name == "isupper" || name == "islower") return Value::Of(HasCase(text, name == "isupper"));
  if (name == "replace") {
    const Value *from = arguments.Get(0, "old"), *to = arguments.Get(1, "new");
    const Value* count = arguments.Get(2, "count");
    int64_t most = -1;
    if (from == nullptr || to == nullptr || from->text() == nullptr || to->text() == nullptr ||
        (count != nullptr && !count->Integer(&most))) {
      return BadMethodArguments(name);
    }
    std::string out;
    const auto limit = static_cast<size_t>(std::max<int64_t>(bytes_left_, 0));
    if (!Replace(text, *from->text(), *to->text(), most, std::min(limit, kMaxTextBytes), &out)) {
      return ChargeMemory(bytes_left_ + 1);
    }
    return Text(std::move(out));
  }
  if (name == "join") {
    if (first == nullptr) return BadMethodArguments(name);
    ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(*first));
    std::string out;
    for (size_t i = 0; i < items.size(); ++i) {
      const std::string* part = items[i].text();
      if (part == nullptr) {
        return InvalidArgument("sequence item {}: expected str instance, {} found", i,
                               items[i].TypeName());
      }
      RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(part->size() + text.size())));
      if (i > 0) out += text;
      out += *part;
    }
    return Text(std::move(out));
  }
  if (name == "removeprefix" || name == "removesuffix") {
    if (first == nullptr || first->text() == nullptr) return BadMethodArguments(name);
    const std::string& affix = *first->text();
    if (name == "removeprefix") {
      return Text(text.starts_with(affix) ? text.substr(affix.size()) : text);
    }
    return Text(text.ends_with(affix) ? text.substr(0, text.size() - affix.size()) : text);
  }
  if (name == "ljust" || name == "rjust" || name == "zfill") {
    const Value* fill = arguments.Get(1, "");
    int64_t width = 0;
    if (first == nullptr || !first->Integer(&width) ||
        (fill != nullptr && (fill->text() == nullptr || Length(*fill->text()) != 1))) {
      return BadMethodArguments(name);
    }
    const int64_t count = std::max<int64_t>(width - Length(text), 0);
    const std::string character = name == "zfill" ? "0" : fill != nullptr ? *fill->text() : " ";
    ASSIGN_OR_RETURN(const Value padding, Repeat(Value::Of(character), count));
    if (name == "ljust") return Text(text + *padding.text());
    const bool sign = name == "zfill" && (text.starts_with('-') || text.starts_with('+'));
    return Text(text.substr(0, sign ? 1 : 0) + *padding.text() + text.substr(sign ? 1 : 0));
  }
  if (name == "format") return FormatMethod(text, arguments);
  if (name.find("split") != std::string::npos || name.find("partition") != std::string::npos) {
    return SplitMethod(text, name, arguments);
  }
  return SearchMethod(text, name, arguments);
}

absl::StatusOr<Value> Interpreter::SearchMethod(const std::string& text, const std::string& name,
                                                const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  size_t begin = 0, end = 0;
  if (first == nullptr || !CharacterRange(text, arguments, 1, &begin, &end))
    return BadMethodArguments(name);
  const std::string_view part = std::string_view(text).substr(begin, end - begin);
  if (name == "startswith" || name == "endswith") {
    const auto matches = [&](const Value& affix) {
      return name == "startswith" ? part.starts_with(*affix.text()) : part.ends_with(*affix.text());
    };
    if (first->text() != nullptr) return Value::Of(matches(*first));
    const List* list = first->As<List>();
    if (list == nullptr || !(*list)->tuple) {
      return InvalidArgument("{} first arg must be str or a tuple of str, not {}", name,
                             first->TypeName());
    }
    for (const Value& affix : (*list)->items) {
      if (affix.text() == nullptr) return BadMethodArguments(name);
      RETURN_IF_ERROR(ChargeBytes(affix.Weight()));
      if (matches(affix)) return Value::Of(true);
    }
    return Value::Of(false);
  }
  if (first->text() == nullptr) return BadMethodArguments(name);
  const std::string& pattern = *first->text();
  if (name == "count") {
    if (pattern.empty()) return Value::Of(Length(part) + 1);
    int64_t count = 0;
    for (size_t at = 0; (at = Find(part, pattern, at)) != std::string::npos; at += pattern.size()) {
      ++count;
    }
    return Value::Of(count);
  }
  size_t found = std::string::npos;
  if (name == "find" || name == "index") {
    found = Find(part, pattern);
  } else if (name == "rfind" || name == "rindex") {
    // Not linear, so its worst case is paid for.
    RETURN_IF_ERROR(Charge(
        static_cast<int64_t>(part.size() / 64 * std::min(pattern.size(), part.size()) / 64)));
    found = part.rfind(pattern);
  } else {
    return Unsupported(fmt::format("str.{}", name));
  }
  if (found != std::string::npos) {
    return Value::Of(Length(std::string_view(text).substr(0, begin + found)));
  }
  if (name.ends_with("index")) return InvalidArgument("substring not found");
  return Value::Of(int64_t{-1});
}

absl::StatusOr<Value> Interpreter::SplitMethod(const std::string& text, const std::string& name,
                                               const Arguments& arguments) {
  std::vector<std::string_view> parts;
  bool tuple = false;
  if (name == "splitlines") {
    const Value* keep = arguments.Get(0, "keepends");
    parts = SplitLines(text, keep != nullptr && keep->Truth());
  } else {
    const Value *separator = arguments.Get(0, "sep"), *most = arguments.Get(1, "maxsplit");
    const bool by_space = separator == nullptr || separator->none();
    if (!by_space && (separator->text() == nullptr || separator->text()->empty())) {
      return InvalidArgument("{}: empty separator, or one that is no string", name);
    }
    const std::string sep = by_space ? "" : *separator->text();
    if (name[0] == 'r') {
      RETURN_IF_ERROR(
          Charge(static_cast<int64_t>(text.size() / 64 * std::min(sep.size(), text.size()) / 64)));
    }
    if (name == "partition" || name == "rpartition") {
      if (by_space) return BadMethodArguments(name);
      const size_t at = name == "partition" ? Find(text, sep) : text.rfind(sep);
      const std::string_view all = text;
      if (at != std::string::npos) {
        parts = {all.substr(0, at), all.substr(at, sep.size()), all.substr(at + sep.size())};
      } else if (name == "partition") {
        parts = {all, "", ""};
      } else {
        parts = {"", "", all};
      }
      tuple = true;
    } else {
      int64_t max_splits = -1;
      if (most != nullptr && !most->Integer(&max_splits)) return BadMethodArguments(name);
      parts = Split(text, sep, max_splits, name == "rsplit");
    }
  }
  RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(text.size() + 64 * parts.size())));
  std::vector<Value> items;
  items.reserve(parts.size());
  for (const std::string_view part : parts) items.push_back(Value::Of(std::string(part)));
  return MakeItems(std::move(items), tuple);
}

// "{} {0} {name}": fields without conversions and formats of their own.
absl::StatusOr<Value> Interpreter::FormatMethod(const std::string& text,
                                                const Arguments& arguments) {
  std::string out;
  size_t next = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    const char c = text[at];
    const bool twice = at + 1 < text.size() && text[at + 1] == c;
    if ((c == '{' || c == '}') && twice) {
      out += c;
      ++at;
      continue;
    }
    if (c == '}') return InvalidArgument("format: a single '}}'");
    if (c != '{') {
      out += c;
      continue;
    }
    const size_t end = text.find('}', at);
    if (end == std::string::npos) return InvalidArgument("format: a '{{' without '}}'");
    const std::string field = text.substr(at + 1, end - at - 1);
    at = end;
    const Value* value = nullptr;
    size_t index = 0;
    const auto parsed = std::from_chars(field.data(), field.data() + field.size(), index);
    if (field.empty()) {
      index = next++;
    }
    if (field.empty() || (parsed.ec == std::errc() && parsed.ptr == field.data() + field.size())) {
      value = index < arguments.positional.size() ? &arguments.positional[index] : nullptr;
    } else {
      if (field.find_first_of(".[:!") != std::string::npos) {
        return Unsupported(fmt::format("the field {{{}}} of format", field));
      }
      value = arguments.Get(arguments.positional.size(), field);
    }
    if (value == nullptr) return InvalidArgument("format: no argument for {{{}}}", field);
    RETURN_IF_ERROR(ChargeMemory(value->Weight()));
    out += ToText(*value);
  }
  return Text(std::move(out));
}

absl::StatusOr<Value> Interpreter::ListMethod(const ListData& list, const std::string& name,
                                              const Arguments& arguments) {
  const Value* first = arguments.Get(0, "");
  if (first == nullptr) return BadMethodArguments(name);
  int64_t count = 0;
  for (size_t i = 0; i < list.items.size(); ++i) {
    RETURN_IF_ERROR(ChargeBytes(16 * std::min(list.items[i].Weight(), first->Weight())));
    if (!Equal(list.items[i], *first)) continue;
    if (name == "index") return Value::Of(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") return InvalidArgument("{} is not in list", Repr(*first));
  return Value::Of(count);
}

absl::StatusOr<Value> Interpreter::DictMethod(const DictData& dict, const std::string& name,
                                              const Arguments& arguments) {
  if (name == "get") {
    const Value *key = arguments.Get(0, ""), *otherwise = arguments.Get(1, "");
    if (key == nullptr) return BadMethodArguments(name);
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(dict.entries.size()) / 8));
    if (const Value* value = dict.Find(*key)) return *value;
    return otherwise == nullptr ? Value() : *otherwise;
  }
  if (name == "copy") {
    RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(dict.entries.size() * 2 * sizeof(Value))));
    return MakeDict(dict);
  }
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) {
    if (name == "keys") {
      items.push_back(key);
    } else if (name == "values") {
      items.push_back(value);
    } else {
      ASSIGN_OR_RETURN(Value pair, MakeItems({key, value}, true));
      items.push_back(std::move(pair));
    }
  }
  return MakeItems(std::move(items));
}

}  // namespace quantd::jinja

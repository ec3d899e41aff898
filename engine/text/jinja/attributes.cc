// Attributes, items, slices, and what can be looped over; see interpreter.h. Rules of Jinja's
// sandbox: a dict's methods come before its keys in a.b, after them in a['b']; what would change a
// list or a dict is no attribute.
#include <algorithm>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

template <size_t n>
bool IsIn(const std::string_view (&names)[n], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

constexpr std::string_view kStringMethods[] = {
    "capitalize", "count",   "endswith",   "find",         "format",       "index",   "isalnum",
    "isalpha",    "isdigit", "islower",    "isspace",      "isupper",      "join",    "ljust",
    "lower",      "lstrip",  "partition",  "removeprefix", "removesuffix", "replace", "rfind",
    "rindex",     "rjust",   "rpartition", "rsplit",       "rstrip",       "split",   "splitlines",
    "startswith", "strip",   "swapcase",   "title",        "upper",        "zfill"};
constexpr std::string_view kListMethods[] = {"count", "index"};
constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kUnsafeOfList[] = {"append", "clear",  "extend",  "insert",
                                              "pop",    "remove", "reverse", "sort"};
constexpr std::string_view kUnsafeOfDict[] = {"clear", "pop", "popitem", "setdefault", "update"};

Value Method(const Value& self, const std::string& name) {
  auto callable = std::make_shared<Callable>();
  callable->kind = Callable::Kind::kMethod;
  callable->name = name;
  callable->self = self;
  return Value(Value::Storage(std::shared_ptr<const Callable>(std::move(callable))));
}

std::string ObjectName(const Value& object) {
  return object.none() ? "None" : fmt::format("{} object", object.TypeName());
}

// Python's bounds of a slice of `size` items.
struct Bounds {
  int64_t start = 0, stop = 0, step = 1;
};
int64_t Clamp(int64_t index, int64_t size, int64_t low, int64_t high) {
  if (index < 0) index += size;
  return std::clamp(index, low, high);
}

}  // namespace

absl::StatusOr<Value> Interpreter::Attribute(const Value& object, const std::string& name) {
  if (const auto* missing = object.As<Undefined>()) return InvalidArgument("{}", *missing->what);
  const auto unsafe = [&] {
    return Value::Missing(
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, object.TypeName()));
  };
  if (object.text() != nullptr && IsIn(kStringMethods, name)) return Method(object, name);
  if (object.Is<List>()) {
    if (IsIn(kListMethods, name)) return Method(object, name);
    if (IsIn(kUnsafeOfList, name)) return unsafe();
  }
  if (const Dict* dict = object.As<Dict>()) {
    if (IsIn(kDictMethods, name)) return Method(object, name);
    if (IsIn(kUnsafeOfDict, name)) return unsafe();
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>((*dict)->entries.size()) / 8));
    if (const Value* value = (*dict)->Find(name)) return *value;
  }
  if (const auto* space = object.As<std::shared_ptr<NamespaceData>>()) {
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>((*space)->entries.size()) / 8));
    if (const Value* value = (*space)->Find(name)) return *value;
  }
  if (object.Is<std::shared_ptr<const LoopState>>()) return LoopAttribute(object, name);
  if (const auto* callable = object.As<std::shared_ptr<const Callable>>();
      callable != nullptr && (*callable)->macro != nullptr && name == "name") {
    return Value::Of((*callable)->name);
  }
  if (name.starts_with('_')) return unsafe();
  return Value::Missing(fmt::format("'{}' has no attribute '{}'", ObjectName(object), name));
}

absl::StatusOr<Value> Interpreter::Item(const Value& object, const Value& key) {
  if (const auto* missing = object.As<Undefined>()) return InvalidArgument("{}", *missing->what);
  int64_t index = 0;
  if (key.Integer(&index) && !object.Is<Dict>()) {
    const auto at = [&](int64_t size) { return index < 0 ? index + size : index; };
    if (const List* list = object.As<List>()) {
      const auto& items = (*list)->items;
      const int64_t i = at(static_cast<int64_t>(items.size()));
      if (i >= 0 && i < static_cast<int64_t>(items.size())) return items[static_cast<size_t>(i)];
    } else if (const std::string* text = object.text()) {
      RETURN_IF_ERROR(ChargeBytes(object.Weight()));
      const int64_t size = Length(*text);
      if (const int64_t i = at(size); i >= 0 && i < size) {
        const size_t offset = OffsetOf(*text, i);
        return Text(text->substr(offset, OffsetOf(std::string_view(*text).substr(offset), 1)));
      }
    }
  } else if (const Dict* dict = object.As<Dict>()) {
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>((*dict)->entries.size()) / 8));
    if (const Value* value = (*dict)->Find(key)) return *value;
  }
  if (const std::string* name = key.text()) return Attribute(object, *name);
  return Value::Missing(fmt::format("{} has no element {}", ObjectName(object), Repr(key)));
}

absl::StatusOr<Value> Interpreter::Slice(const Value& object, const Expr& slice,
                                         const ScopePtr& scope) {
  int64_t given[3] = {0, 0, 1};
  bool has[3] = {};
  for (size_t i = 0; i < 3; ++i) {
    if (slice.operands[i] == nullptr) continue;
    ASSIGN_OR_RETURN(const Value value, Evaluate(*slice.operands[i], scope));
    if (value.none()) continue;
    if (!value.Integer(&given[i])) {
      return InvalidArgument("slice indices must be integers or None, not {}", value.TypeName());
    }
    has[i] = true;
  }
  if (const auto* missing = object.As<Undefined>()) return InvalidArgument("{}", *missing->what);
  const int64_t step = given[2];
  if (step == 0) return InvalidArgument("slice step cannot be zero");
  if (object.text() == nullptr && !object.Is<List>()) {
    return Value::Missing(fmt::format("'{}' cannot be sliced", ObjectName(object)));
  }
  RETURN_IF_ERROR(ChargeBytes(object.text() != nullptr ? object.Weight() : 1));
  const int64_t size = object.text() != nullptr
                           ? Length(*object.text())
                           : static_cast<int64_t>((*object.As<List>())->items.size());
  Bounds bounds;
  bounds.step = std::clamp(step, -size - 1, size + 1);
  if (step > 0) {
    bounds.start = has[0] ? Clamp(given[0], size, 0, size) : 0;
    bounds.stop = has[1] ? Clamp(given[1], size, 0, size) : size;
  } else {
    bounds.start = has[0] ? Clamp(given[0], size, -1, size - 1) : size - 1;
    bounds.stop = has[1] ? Clamp(given[1], size, -1, size - 1) : -1;
  }
  if (const std::string* text = object.text()) {
    if (bounds.step == 1) {
      if (bounds.stop <= bounds.start) return Text("");
      const size_t begin = OffsetOf(*text, bounds.start);
      const size_t length =
          OffsetOf(std::string_view(*text).substr(begin), bounds.stop - bounds.start);
      return Text(text->substr(begin, length));
    }
    RETURN_IF_ERROR(ChargeMemory(size * static_cast<int64_t>(sizeof(std::string_view))));
    const std::vector<std::string_view> characters = Characters(*text);
    std::string out;
    for (int64_t i = bounds.start; bounds.step > 0 ? i < bounds.stop : i > bounds.stop;
         i += bounds.step) {
      out += characters[static_cast<size_t>(i)];
    }
    return Text(std::move(out));
  }
  const ListData& list = **object.As<List>();
  std::vector<Value> items;
  for (int64_t i = bounds.start; bounds.step > 0 ? i < bounds.stop : i > bounds.stop;
       i += bounds.step) {
    items.push_back(list.items[static_cast<size_t>(i)]);
  }
  return MakeItems(std::move(items), list.tuple);
}

absl::StatusOr<Value> Interpreter::LoopAttribute(const Value& loop, const std::string& name) {
  const LoopState& state = **loop.As<std::shared_ptr<const LoopState>>();
  const auto size = static_cast<int64_t>(state.items->items.size());
  const int64_t i = state.index0;
  if (name == "index0") return Value::Of(i);
  if (name == "index") return Value::Of(i + 1);
  if (name == "revindex0") return Value::Of(size - i - 1);
  if (name == "revindex") return Value::Of(size - i);
  if (name == "first") return Value::Of(i == 0);
  if (name == "last") return Value::Of(i + 1 == size);
  if (name == "length") return Value::Of(size);
  if (name == "depth0") return Value::Of(state.depth0);
  if (name == "depth") return Value::Of(state.depth0 + 1);
  if (name == "previtem") {
    if (i == 0) return Value::Missing("there is no previous item");
    return state.items->items[static_cast<size_t>(i - 1)];
  }
  if (name == "nextitem") {
    if (i + 1 == size) return Value::Missing("there is no next item");
    return state.items->items[static_cast<size_t>(i + 1)];
  }
  if (name == "cycle") return Method(loop, name);
  if (name == "changed") return Unsupported("loop.changed");
  return Value::Missing(fmt::format("'loop' has no attribute '{}'", name));
}

absl::StatusOr<std::vector<Value>> Interpreter::Iterate(const Value& value) {
  std::vector<Value> items;
  if (const List* list = value.As<List>()) {
    const auto count = static_cast<int64_t>((*list)->items.size());
    RETURN_IF_ERROR(ChargeMemory(count * static_cast<int64_t>(sizeof(Value))));
    RETURN_IF_ERROR(Charge(1 + count / 4));
    return (*list)->items;
  }
  if (const Dict* dict = value.As<Dict>()) {
    const auto count = static_cast<int64_t>((*dict)->entries.size());
    RETURN_IF_ERROR(ChargeMemory(count * static_cast<int64_t>(sizeof(Value))));
    RETURN_IF_ERROR(Charge(1 + count / 4));
    for (const auto& [key, item] : (*dict)->entries) items.push_back(key);
    return items;
  }
  if (const std::string* text = value.text()) {
    const int64_t count = Length(*text);
    RETURN_IF_ERROR(ChargeMemory(count * 96));  // a string each
    RETURN_IF_ERROR(Charge(1 + count));
    for (const std::string_view character : Characters(*text)) {
      items.push_back(Value::Of(std::string(character)));
    }
    return items;
  }
  if (value.undefined()) return items;
  return InvalidArgument("'{}' object is not iterable", value.TypeName());
}

}  // namespace quantd::jinja

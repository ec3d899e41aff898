// Values: truth, order, equality, and how they come from JSON; see value.h.
#include "engine/text/jinja/value.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "kernels/status.h"

namespace quantd::jinja {
namespace {

using Json = nlohmann::ordered_json;

absl::StatusOr<Value> Convert(const Json& json, int depth, const std::string& name) {
  if (depth > kMaxValueDepth) {
    return InvalidArgument("{}: more than {} values in each other", name, kMaxValueDepth);
  }
  switch (json.type()) {
    case Json::value_t::boolean: return Value::Of(json.get<bool>());
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > uint64_t{std::numeric_limits<int64_t>::max()}) {
        return InvalidArgument("{}: {} is larger than any integer of 64 bits", name, json.dump());
      }
      return Value::Of(json.get<int64_t>());
    case Json::value_t::number_integer: return Value::Of(json.get<int64_t>());
    case Json::value_t::number_float: return Value::Of(json.get<double>());
    case Json::value_t::string: return Value::Of(json.get<std::string>());
    case Json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const Json& item : json) {
        ASSIGN_OR_RETURN(Value value, Convert(item, depth + 1, name));
        items.push_back(std::move(value));
      }
      return MakeList(std::move(items));
    }
    case Json::value_t::object: {
      DictData dict;
      dict.entries.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        ASSIGN_OR_RETURN(Value value, Convert(item, depth + 1, name));
        dict.entries.emplace_back(Value::Of(key), std::move(value));  // the parser keeps keys apart
      }
      return MakeDict(std::move(dict));
    }
    default: return Value();
  }
}

// Of a list or dict.
struct Extent {
  int depth = 0;
  int64_t weight = 1;

  void Add(const Value& value) {
    depth = std::max(depth, value.Depth());
    weight = std::min(weight + value.Weight(), kMaxValueWeight + 1);
  }
  absl::Status Check() const {
    if (depth >= kMaxValueDepth) {
      return ResourceExhausted("more than {} values in each other", kMaxValueDepth);
    }
    if (weight > kMaxValueWeight) {
      return ResourceExhausted("a value of more than {} bytes", kMaxValueWeight);
    }
    return absl::OkStatus();
  }
};

}  // namespace

Value Value::Missing(std::string what) {
  return Value(Storage(Undefined{std::make_shared<const std::string>(std::move(what))}));
}

bool Value::Integer(int64_t* out) const {
  if (const auto* value = As<int64_t>()) {
    *out = *value;
  } else if (const auto* boolean = As<bool>()) {
    *out = *boolean ? 1 : 0;
  } else {
    return false;
  }
  return true;
}

bool Value::Number(double* out) const {
  int64_t integer = 0;
  if (const auto* value = As<double>()) {
    *out = *value;
  } else if (Integer(&integer)) {
    *out = static_cast<double>(integer);
  } else {
    return false;
  }
  return true;
}

bool Value::Truth() const {
  struct Visitor {
    bool operator()(const Undefined&) const { return false; }
    bool operator()(const None&) const { return false; }
    bool operator()(bool value) const { return value; }
    bool operator()(int64_t value) const { return value != 0; }
    bool operator()(double value) const { return value != 0; }
    bool operator()(const String& value) const { return !value->empty(); }
    bool operator()(const List& value) const { return !value->items.empty(); }
    bool operator()(const Dict& value) const { return !value->entries.empty(); }
    bool operator()(const std::shared_ptr<NamespaceData>&) const { return true; }
    bool operator()(const std::shared_ptr<const Callable>&) const { return true; }
    bool operator()(const std::shared_ptr<const LoopState>&) const { return true; }
  };
  return std::visit(Visitor(), storage_);
}

int Value::Depth() const {
  if (const List* list = As<List>()) return (*list)->depth;
  if (const Dict* dict = As<Dict>()) return (*dict)->depth;
  if (const auto* callable = As<std::shared_ptr<const Callable>>()) {
    return (*callable)->self.Depth() + 1;
  }
  return 0;
}

int64_t Value::Weight() const {
  if (const std::string* string = text()) return static_cast<int64_t>(string->size()) + 1;
  if (const List* list = As<List>()) return (*list)->weight;
  if (const Dict* dict = As<Dict>()) return (*dict)->weight;
  return 1;
}

std::string_view Value::TypeName() const {
  constexpr std::string_view kNames[] = {"Undefined", "NoneType", "bool",       "int",
                                         "float",     "str",      "list",       "dict",
                                         "Namespace", "function", "LoopContext"};
  if (const List* list = As<List>(); list != nullptr && (*list)->tuple) return "tuple";
  return kNames[storage_.index()];
}

const Value* DictData::Find(std::string_view key) const {
  for (const auto& [k, v] : entries) {
    if (const std::string* text = k.text(); text != nullptr && *text == key) return &v;
  }
  return nullptr;
}

const Value* DictData::Find(const Value& key) const {
  if (const std::string* text = key.text()) return Find(*text);
  for (const auto& [k, v] : entries) {
    if (Equal(k, key)) return &v;
  }
  return nullptr;
}

void DictData::Set(const Value& key, Value value) {
  for (auto& [k, v] : entries) {
    if (!Equal(k, key)) continue;
    v = std::move(value);
    return;
  }
  entries.emplace_back(key, std::move(value));
}

const Value* Bindings::Find(std::string_view name) const {
  for (const auto& [k, v] : entries) {
    if (k == name) return &v;
  }
  return nullptr;
}

void Bindings::Set(std::string_view name, Value value) {
  for (auto& [k, v] : entries) {
    if (k != name) continue;
    v = std::move(value);
    return;
  }
  entries.emplace_back(name, std::move(value));
}

absl::StatusOr<Value> MakeList(std::vector<Value> items, bool tuple) {
  Extent extent;
  for (const Value& item : items) extent.Add(item);
  RETURN_IF_ERROR(extent.Check());
  return Value(Value::Storage(List(std::make_shared<ListData>(
      ListData{std::move(items), tuple, extent.depth + 1, extent.weight}))));
}

absl::StatusOr<Value> MakeDict(DictData entries) {
  Extent extent;
  for (const auto& [key, value] : entries.entries) {
    extent.Add(key);
    extent.Add(value);
  }
  RETURN_IF_ERROR(extent.Check());
  entries.depth = extent.depth + 1;
  entries.weight = extent.weight;
  return Value(Value::Storage(Dict(std::make_shared<DictData>(std::move(entries)))));
}

absl::StatusOr<Value> FromJson(std::string_view text, const std::string& name) {
  // The library builds its tree without recursion; the depth is checked while it is read.
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxValueDepth;
    return !too_deep;
  };
  const Json json = Json::parse(text, watch, false);
  if (too_deep)
    return InvalidArgument("{}: more than {} values in each other", name, kMaxValueDepth);
  if (json.is_discarded()) return InvalidArgument("{}: not valid JSON", name);
  return Convert(json, 1, name);
}

bool Equal(const Value& a, const Value& b) {
  double x = 0, y = 0;
  int64_t i = 0, j = 0;
  if (a.Integer(&i) && b.Integer(&j)) return i == j;
  if (a.Number(&x) && b.Number(&y)) return x == y;
  if (const std::string* text = a.text()) return b.text() != nullptr && *text == *b.text();
  if (a.undefined() || b.undefined()) return a.undefined() && b.undefined();
  if (a.none() || b.none()) return a.none() && b.none();
  if (const List* left = a.As<List>()) {
    const List* right = b.As<List>();
    return right != nullptr && (*left)->tuple == (*right)->tuple &&
           (*left == *right || std::equal((*left)->items.begin(), (*left)->items.end(),
                                          (*right)->items.begin(), (*right)->items.end(), Equal));
  }
  if (const Dict* left = a.As<Dict>()) {
    const Dict* right = b.As<Dict>();
    if (right == nullptr || (*left)->entries.size() != (*right)->entries.size()) return false;
    if (*left == *right) return true;
    return std::all_of((*left)->entries.begin(), (*left)->entries.end(), [&](const auto& entry) {
      const Value* other = (*right)->Find(entry.first);
      return other != nullptr && Equal(entry.second, *other);
    });
  }
  if (const auto* left = a.As<std::shared_ptr<NamespaceData>>()) {
    const auto* right = b.As<std::shared_ptr<NamespaceData>>();
    return right != nullptr && *left == *right;
  }
  return false;
}

absl::StatusOr<int> Compare(const Value& a, const Value& b) {
  const auto order = [](const auto& x, const auto& y) { return x < y ? -1 : y < x ? 1 : 0; };
  double x = 0, y = 0;
  int64_t i = 0, j = 0;
  if (a.Integer(&i) && b.Integer(&j)) return order(i, j);
  if (a.Number(&x) && b.Number(&y)) return order(x, y);
  if (a.text() != nullptr && b.text() != nullptr) {
    // By code point in Python, by byte here: in UTF-8 the same order.
    return order(*a.text(), *b.text());
  }
  const List *left = a.As<List>(), *right = b.As<List>();
  if (left != nullptr && right != nullptr && (*left)->tuple == (*right)->tuple) {
    const auto &p = (*left)->items, &q = (*right)->items;
    for (size_t at = 0; at < std::min(p.size(), q.size()); ++at) {
      if (Equal(p[at], q[at])) continue;
      return Compare(p[at], q[at]);
    }
    return order(p.size(), q.size());
  }
  for (const Value* value : {&a, &b}) {
    if (const auto* missing = value->As<Undefined>()) return InvalidArgument("{}", *missing->what);
  }
  return InvalidArgument("'{}' and '{}' have no order", a.TypeName(), b.TypeName());
}

}  // namespace quantd::jinja

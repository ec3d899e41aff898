// Filters of lists and dicts; see interpreter.h.
#include <algorithm>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

bool Flag(const Value* value) { return value != nullptr && value->Truth(); }

// `arguments` without the first positional one.
Arguments Rest(const Arguments& arguments) {
  Arguments rest = arguments;
  rest.positional.erase(rest.positional.begin());
  return rest;
}

}  // namespace

Interpreter::Filter Interpreter::FindSequenceFilter(std::string_view name) {
  static constexpr std::pair<std::string_view, Filter> kFilters[] = {
      {"batch", &Interpreter::FilterBatch},
      {"count", &Interpreter::FilterLength},
      {"dictsort", &Interpreter::FilterDictSort},
      {"first", &Interpreter::FilterFirst},
      {"items", &Interpreter::FilterItems},
      {"join", &Interpreter::FilterJoin},
      {"last", &Interpreter::FilterLast},
      {"length", &Interpreter::FilterLength},
      {"list", &Interpreter::FilterList},
      {"map", &Interpreter::FilterMap},
      {"max", &Interpreter::FilterMax},
      {"min", &Interpreter::FilterMin},
      {"reject", &Interpreter::FilterReject},
      {"rejectattr", &Interpreter::FilterRejectAttr},
      {"reverse", &Interpreter::FilterReverse},
      {"select", &Interpreter::FilterSelect},
      {"selectattr", &Interpreter::FilterSelectAttr},
      {"sort", &Interpreter::FilterSort},
      {"sum", &Interpreter::FilterSum},
      {"unique", &Interpreter::FilterUnique},
  };
  for (const auto& [known, filter] : kFilters) {
    if (known == name) return filter;
  }
  return nullptr;
}

absl::StatusOr<Value> Interpreter::FilterLength(const Value& value, const Arguments&) {
  if (const std::string* text = value.text()) return Value::Of(Length(*text));
  if (const List* list = value.As<List>()) {
    return Value::Of(static_cast<int64_t>((*list)->items.size()));
  }
  if (const Dict* dict = value.As<Dict>()) {
    return Value::Of(static_cast<int64_t>((*dict)->entries.size()));
  }
  if (value.undefined()) return Value::Of(int64_t{0});
  return InvalidArgument("object of type '{}' has no len()", value.TypeName());
}

absl::StatusOr<Value> Interpreter::FilterFirst(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  return items.empty() ? Value::Missing("No first item, sequence was empty.") : items.front();
}

absl::StatusOr<Value> Interpreter::FilterLast(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  return items.empty() ? Value::Missing("No last item, sequence was empty.") : items.back();
}

absl::StatusOr<Value> Interpreter::FilterJoin(const Value& value, const Arguments& arguments) {
  const Value *between = arguments.Get(0, "d"), *path = arguments.Get(1, "attribute");
  const std::string separator = between == nullptr ? "" : ToText(*between);
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    Value item = items[i];
    if (path != nullptr && !path->none()) {
      ASSIGN_OR_RETURN(item, AttributePath(item, *path));
    }
    RETURN_IF_ERROR(ChargeMemory(item.Weight() + static_cast<int64_t>(separator.size())));
    if (i > 0) out += separator;
    out += ToText(item);
  }
  return Text(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterList(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
  return MakeItems(std::move(items));
}

absl::StatusOr<Value> Interpreter::FilterReverse(const Value& value, const Arguments&) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(value));
  std::reverse(items.begin(), items.end());
  if (value.text() == nullptr) return MakeItems(std::move(items));
  std::string out;
  for (const Value& item : items) out += *item.text();
  return Text(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterItems(const Value& value, const Arguments& arguments) {
  if (value.undefined()) return MakeItems({});
  const Dict* dict = value.As<Dict>();
  if (dict == nullptr) return InvalidArgument("Can only get item pairs from a mapping.");
  return DictMethod(**dict, "items", arguments);
}

absl::StatusOr<Value> Interpreter::SortKey(const Value& value, bool case_sensitive) {
  if (case_sensitive || value.text() == nullptr) return value;
  return Text(ChangeCase(*value.text(), Case::kLower));
}

absl::StatusOr<std::vector<Value>> Interpreter::Sorted(const std::vector<Value>& items,
                                                       const std::vector<Value>& keys,
                                                       bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  absl::Status status;
  const auto before = [&](size_t a, size_t b) {
    if (!status.ok()) return false;
    status = ChargeBytes(16 * std::min(keys[a].Weight(), keys[b].Weight()));
    if (!status.ok()) return false;
    const auto compared = jinja::Compare(keys[reverse ? b : a], keys[reverse ? a : b]);
    if (!compared.ok()) status = compared.status();
    return compared.ok() && *compared < 0;
  };
  // Not std::sort, which may run wild where the order is none, as after an error.
  std::stable_sort(order.begin(), order.end(), before);
  RETURN_IF_ERROR(status);
  std::vector<Value> out;
  for (const size_t i : order) out.push_back(items[i]);
  return out;
}

absl::StatusOr<Value> Interpreter::FilterDictSort(const Value& value, const Arguments& arguments) {
  const Dict* dict = value.As<Dict>();
  if (dict == nullptr) return BadArguments("dictsort");
  const bool case_sensitive = Flag(arguments.Get(0, "case_sensitive"));
  const Value* by = arguments.Get(1, "by");
  const bool by_value = by != nullptr && ToText(*by) == "value";
  std::vector<Value> items, keys;
  for (const auto& [key, item] : (*dict)->entries) {
    ASSIGN_OR_RETURN(Value pair, MakeItems({key, item}, true));
    items.push_back(std::move(pair));
    ASSIGN_OR_RETURN(Value sort_key, SortKey(by_value ? item : key, case_sensitive));
    keys.push_back(std::move(sort_key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   Sorted(items, keys, Flag(arguments.Get(2, "reverse"))));
  return MakeItems(std::move(sorted));
}

absl::StatusOr<Value> Interpreter::FilterSort(const Value& value, const Arguments& arguments) {
  const bool case_sensitive = Flag(arguments.Get(1, "case_sensitive"));
  const Value* path = arguments.Get(2, "attribute");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  std::vector<Value> keys;
  for (const Value& item : items) {
    Value key = item;
    if (path != nullptr && !path->none()) {
      ASSIGN_OR_RETURN(key, AttributePath(item, *path));
    }
    ASSIGN_OR_RETURN(key, SortKey(key, case_sensitive));
    keys.push_back(std::move(key));
  }
  ASSIGN_OR_RETURN(std::vector<Value> sorted,
                   Sorted(items, keys, Flag(arguments.Get(0, "reverse"))));
  return MakeItems(std::move(sorted));
}

absl::StatusOr<Value> Interpreter::FilterUnique(const Value& value, const Arguments& arguments) {
  const bool case_sensitive = Flag(arguments.Get(0, "case_sensitive"));
  const Value* path = arguments.Get(1, "attribute");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  std::vector<Value> out, keys;
  for (const Value& item : items) {
    Value key = item;
    if (path != nullptr && !path->none()) {
      ASSIGN_OR_RETURN(key, AttributePath(item, *path));
    }
    ASSIGN_OR_RETURN(key, SortKey(key, case_sensitive));
    bool known = false;
    for (const Value& other : keys) {
      RETURN_IF_ERROR(ChargeBytes(16 * std::min(other.Weight(), key.Weight())));
      known = known || Equal(other, key);
    }
    if (known) continue;
    keys.push_back(std::move(key));
    out.push_back(item);
  }
  return MakeItems(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterSum(const Value& value, const Arguments& arguments) {
  const Value *path = arguments.Get(0, "attribute"), *start = arguments.Get(1, "start");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  Value sum = start == nullptr ? Value::Of(int64_t{0}) : *start;
  for (Value item : items) {
    if (path != nullptr && !path->none()) {
      ASSIGN_OR_RETURN(item, AttributePath(item, *path));
    }
    ASSIGN_OR_RETURN(sum, Binary("+", sum, item));
  }
  return sum;
}

absl::StatusOr<Value> Interpreter::Extreme(const Value& value, const Arguments& arguments,
                                           bool max) {
  const bool case_sensitive = Flag(arguments.Get(0, "case_sensitive"));
  const Value* path = arguments.Get(1, "attribute");
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  if (items.empty()) return Value::Missing("No aggregated item, sequence was empty.");
  const Value* best = nullptr;
  Value best_key;
  for (const Value& item : items) {
    Value key = item;
    if (path != nullptr && !path->none()) {
      ASSIGN_OR_RETURN(key, AttributePath(item, *path));
    }
    ASSIGN_OR_RETURN(key, SortKey(key, case_sensitive));
    if (best != nullptr) {
      ASSIGN_OR_RETURN(const bool better, CompareTwo(max ? ">" : "<", key, best_key));
      if (!better) continue;
    }
    best = &item;
    best_key = std::move(key);
  }
  return *best;
}

absl::StatusOr<Value> Interpreter::FilterMin(const Value& value, const Arguments& arguments) {
  return Extreme(value, arguments, false);
}
absl::StatusOr<Value> Interpreter::FilterMax(const Value& value, const Arguments& arguments) {
  return Extreme(value, arguments, true);
}

absl::StatusOr<Value> Interpreter::AttributePath(const Value& object, const Value& path) {
  if (path.text() == nullptr) return Item(object, path);
  Value value = object;
  for (const std::string_view part : Split(*path.text(), ".", -1, false)) {
    Value key = Value::Of(std::string(part));
    if (AllAre(part, Class::kDigit) && part.size() < 10) {
      key = Value::Of(int64_t{std::stoi(std::string(part))});
    }
    // Of what is missing an attribute is missing too, which default= may fill.
    if (value.undefined()) return value;
    ASSIGN_OR_RETURN(value, Item(value, key));
  }
  return value;
}

absl::StatusOr<Value> Interpreter::FilterMap(const Value& value, const Arguments& arguments) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  std::vector<Value> out;
  if (!arguments.positional.empty()) {
    const std::string* name = arguments.positional[0].text();
    if (name == nullptr) return BadArguments("map");
    const Arguments rest = Rest(arguments);
    for (const Value& item : items) {
      ASSIGN_OR_RETURN(Value mapped, ApplyFilter(*name, item, rest));
      out.push_back(std::move(mapped));
    }
    return MakeItems(std::move(out));
  }
  const Value *path = arguments.Get(0, "attribute"), *otherwise = arguments.Get(1, "default");
  if (path == nullptr) return BadArguments("map");
  for (const Value& item : items) {
    ASSIGN_OR_RETURN(Value mapped, AttributePath(item, *path));
    if (mapped.undefined() && otherwise != nullptr) mapped = *otherwise;
    out.push_back(std::move(mapped));
  }
  return MakeItems(std::move(out));
}

absl::StatusOr<Value> Interpreter::SelectIf(const Value& value, const Arguments& arguments,
                                            bool wanted, bool by_attribute) {
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  Arguments rest = arguments;
  Value path;
  if (by_attribute) {
    if (rest.positional.empty()) return BadArguments("selectattr");
    path = rest.positional[0];
    rest = Rest(rest);
  }
  std::string test;
  if (!rest.positional.empty()) {
    if (rest.positional[0].text() == nullptr) return BadArguments("select");
    test = *rest.positional[0].text();
    rest = Rest(rest);
  }
  std::vector<Value> out;
  for (const Value& item : items) {
    Value subject = item;
    if (by_attribute) {
      ASSIGN_OR_RETURN(subject, AttributePath(item, path));
    }
    bool holds = subject.Truth();
    if (!test.empty()) {
      ASSIGN_OR_RETURN(holds, ApplyTest(test, subject, rest));
    }
    if (holds == wanted) out.push_back(item);
  }
  return MakeItems(std::move(out));
}

absl::StatusOr<Value> Interpreter::FilterSelect(const Value& value, const Arguments& arguments) {
  return SelectIf(value, arguments, true, false);
}
absl::StatusOr<Value> Interpreter::FilterReject(const Value& value, const Arguments& arguments) {
  return SelectIf(value, arguments, false, false);
}
absl::StatusOr<Value> Interpreter::FilterSelectAttr(const Value& value,
                                                    const Arguments& arguments) {
  return SelectIf(value, arguments, true, true);
}
absl::StatusOr<Value> Interpreter::FilterRejectAttr(const Value& value,
                                                    const Arguments& arguments) {
  return SelectIf(value, arguments, false, true);
}

absl::StatusOr<Value> Interpreter::FilterBatch(const Value& value, const Arguments& arguments) {
  const Value *count = arguments.Get(0, "linecount"), *fill = arguments.Get(1, "fill_with");
  int64_t size = 0;
  if (count == nullptr || !count->Integer(&size) || size < 1 || size > 10'000) {
    return BadArguments("batch");
  }
  ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
  std::vector<Value> out, batch;
  for (size_t i = 0; i < items.size(); ++i) {
    batch.push_back(items[i]);
    if (i + 1 == items.size() && fill != nullptr && !fill->none()) {
      batch.resize(static_cast<size_t>(size), *fill);
    }
    if (static_cast<int64_t>(batch.size()) < size && i + 1 < items.size()) continue;
    ASSIGN_OR_RETURN(Value part, MakeItems(std::exchange(batch, {})));
    out.push_back(std::move(part));
  }
  return MakeItems(std::move(out));
}

}  // namespace quantd::jinja

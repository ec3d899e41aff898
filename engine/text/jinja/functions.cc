// Global functions of a chat template; see interpreter.h.
#include <algorithm>
#include <ctime>

#include "engine/text/jinja/interpreter.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // of Jinja's sandbox
constexpr size_t kMaxTimeFormat = 256;

}  // namespace

absl::StatusOr<Value> Interpreter::CallFunction(const std::string& name,
                                                const Arguments& arguments) {
  if (name == "range") return Range(arguments);
  if (name == "namespace") return MakeNamespace(arguments);
  if (name == "strftime_now") return FormatTime(arguments);
  if (name == "raise_exception") {
    const Value* message = arguments.Get(0, "message");
    return InvalidArgument("{}", message == nullptr ? std::string() : ToText(*message));
  }
  DictData dict;  // dict(other, key=value)
  if (const Value* other = arguments.Get(0, "")) {
    const Dict* from = other->As<Dict>();
    if (from == nullptr) return Unsupported("dict() of what is no dict");
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>((*from)->entries.size())));
    dict.entries = (*from)->entries;
  }
  for (const auto& [key, value] : arguments.named.entries) {
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(dict.entries.size()) / 8));
    dict.Set(Value::Of(key), value);
  }
  RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(dict.entries.size() * 2 * sizeof(Value))));
  return MakeDict(std::move(dict));
}

absl::StatusOr<Value> Interpreter::Range(const Arguments& arguments) {
  const size_t count = arguments.positional.size();
  int64_t given[3] = {0, 0, 1};
  if (count < 1 || count > 3) return InvalidArgument("range() takes 1 to 3 arguments");
  for (size_t i = 0; i < count; ++i) {
    if (!arguments.positional[i].Integer(&given[i])) {
      return InvalidArgument("range(): '{}' object cannot be interpreted as an integer",
                             arguments.positional[i].TypeName());
    }
  }
  if (count == 1) std::swap(given[0], given[1]);
  const auto [start, stop, step] = given;
  if (step == 0) return InvalidArgument("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) == kMaxRange) {
      return ResourceExhausted("range() of more than {} numbers", kMaxRange);
    }
    items.push_back(Value::Of(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MakeItems(std::move(items));
}

absl::StatusOr<Value> Interpreter::MakeNamespace(const Arguments& arguments) {
  RETURN_IF_ERROR(ChargeMemory(256));
  auto space = std::make_shared<NamespaceData>();
  if (const Value* other = arguments.Get(0, "")) {
    const Dict* from = other->As<Dict>();
    if (from == nullptr) return InvalidArgument("namespace() of what is no dict");
    for (const auto& [key, value] : (*from)->entries) {
      RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(space->entries.size()) / 8));
      if (key.text() != nullptr) space->Set(*key.text(), value);
    }
  }
  for (const auto& [name, value] : arguments.named.entries) {
    if (name.starts_with('_')) {
      return InvalidArgument("cannot store the attribute '{}' on a namespace", name);
    }
    space->Set(name, value);
  }
  namespaces_.push_back(space);
  return Value(Value::Storage(std::move(space)));
}

absl::StatusOr<Value> Interpreter::FormatTime(const Arguments& arguments) {
  const Value* format = arguments.Get(0, "format");
  if (format == nullptr || format->text() == nullptr || format->text()->size() > kMaxTimeFormat) {
    return InvalidArgument("strftime_now() takes a format of at most {} bytes", kMaxTimeFormat);
  }
  std::tm now{};
  if (options_.now.has_value()) {
    now = *options_.now;
  } else {
    const std::time_t seconds = std::time(nullptr);
    localtime_r(&seconds, &now);
  }
  // A character more, for no other way to tell a result of no bytes from one that does not fit.
  char text[64 * kMaxTimeFormat];
  const size_t size = std::strftime(text, sizeof(text), (*format->text() + "x").c_str(), &now);
  if (size == 0) return InvalidArgument("strftime_now(): {:?} gives too much", *format->text());
  return Text(std::string(text, size - 1));
}

}  // namespace quantd::jinja

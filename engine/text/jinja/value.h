// Value: what expressions of a chat template compute with, as Python has it. Part of the
// interpreter of chat templates; see interpreter.h.
//
// A value is small and shares its strings, lists and dicts, which nothing changes once they are
// made; only a namespace changes, as in Jinja's sandbox. Lists and dicts know how deep they are and
// how large they would be written out, so that no value grows beyond what recursion over it can
// take (ten lists that hold the one before twice are a thousand). One thread at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd::jinja {

struct MacroNode;
struct Scope;
struct Statement;
class Value;

/// Values in each other at most.
inline constexpr int kMaxValueDepth = 100;
/// Bytes and values of one value at most, all that is shared counted each time.
inline constexpr int64_t kMaxValueWeight = int64_t{1} << 28;

struct Undefined {
  std::shared_ptr<const std::string> what;  // for messages: "'x' is undefined"
};
struct None {};

struct ListData;
struct DictData;
struct NamespaceData;
struct Callable;
struct LoopState;

using String = std::shared_ptr<const std::string>;
using List = std::shared_ptr<const ListData>;
using Dict = std::shared_ptr<const DictData>;

class Value {
 public:
  using Storage = std::variant<Undefined, None, bool, int64_t, double, String, List, Dict,
                               std::shared_ptr<NamespaceData>, std::shared_ptr<const Callable>,
                               std::shared_ptr<const LoopState>>;

  Value() : storage_(None{}) {}
  Value(Storage storage) : storage_(std::move(storage)) {}  // NOLINT: every alternative is a value
  static Value Of(std::string text) {
    return Value(Storage(std::make_shared<const std::string>(std::move(text))));
  }
  static Value Of(bool value) { return Value(Storage(value)); }
  static Value Of(int64_t value) { return Value(Storage(value)); }
  static Value Of(double value) { return Value(Storage(value)); }
  static Value Missing(std::string what);

  template <typename T>
  bool Is() const {
    return std::holds_alternative<T>(storage_);
  }
  template <typename T>
  const T* As() const {
    return std::get_if<T>(&storage_);
  }
  bool undefined() const { return Is<Undefined>(); }
  bool none() const { return Is<None>(); }
  /// The text of a string, else null.
  const std::string* text() const {
    const String* string = As<String>();
    return string == nullptr ? nullptr : string->get();
  }
  /// A number as int64 (bools are 0 and 1); false for what is none.
  bool Integer(int64_t* out) const;
  bool Number(double* out) const;

  /// Python's bool().
  bool Truth() const;
  /// 1 more than the deepest value inside; 0 for what holds no others.
  int Depth() const;
  /// How long work on all that is inside takes: values and bytes, at least 1.
  int64_t Weight() const;
  /// Python's name of the type, for messages.
  std::string_view TypeName() const;

 private:
  Storage storage_;
};

struct ListData {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
  int64_t weight = 1;
};

struct DictData {
  std::vector<std::pair<Value, Value>> entries;  // in the order in which keys came
  int depth = 1;
  int64_t weight = 1;

  const Value* Find(std::string_view key) const;
  const Value* Find(const Value& key) const;
  /// The last value of a key is kept, at the place of its first.
  void Set(const Value& key, Value value);
};

/// Values by name, in the order in which the names came.
struct Bindings {
  std::vector<std::pair<std::string, Value>> entries;

  const Value* Find(std::string_view name) const;
  void Set(std::string_view name, Value value);
};

/// What namespace() makes: attributes that templates assign.
struct NamespaceData : Bindings {};

/// Something that can be called: a global function or a bound method by its name, a macro, or the
/// body of a call block.
struct Callable {
  enum class Kind : uint8_t { kFunction, kMethod, kMacro, kCaller };
  Kind kind = Kind::kFunction;
  std::string name;
  Value self;                           // of a method
  const MacroNode* macro = nullptr;     // of a macro or a call block
  std::shared_ptr<Scope> caller_scope;  // where a call block stands
};

/// `loop` inside a for.
struct LoopState {
  List items;  // all of them
  int64_t index0 = 0;
  int64_t depth0 = 0;
  const Statement* recursive = nullptr;  // the for statement, where it is recursive
  std::shared_ptr<Scope> outer;          // and what it stands in
};

/// A list or tuple. RESOURCE_EXHAUSTED beyond kMaxValueDepth or kMaxValueWeight.
absl::StatusOr<Value> MakeList(std::vector<Value> items, bool tuple = false);
absl::StatusOr<Value> MakeDict(DictData entries);

/// The value of a JSON text, which `name` stands for in messages: keys keep their order, integers
/// stay integers. INVALID_ARGUMENT for what is not JSON, is nested too deeply, or has an integer
/// beyond 64 bits.
absl::StatusOr<Value> FromJson(std::string_view json, const std::string& name);

/// Python's ==.
bool Equal(const Value& a, const Value& b);
/// Python's <, as -1, 0, 1; an error for types that have no order.
absl::StatusOr<int> Compare(const Value& a, const Value& b);

/// Python's str() and repr().
std::string ToText(const Value& value);
std::string Repr(const Value& value);

/// Options of Python's json.dumps.
struct JsonOptions {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool indented = false;
  std::string indent;  // of one level
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};
/// json.dumps(value); an error for what JSON has no word for.
absl::StatusOr<std::string> ToJson(const Value& value, const JsonOptions& options);

}  // namespace quantd::jinja

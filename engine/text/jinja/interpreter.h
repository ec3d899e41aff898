// Interpreter: runs the tree of a chat template, once. See template.h, which is what others use.
//
// Whatever a template does, it ends: every step and every byte made counts against a budget, and
// what is nested or calls itself is bounded. The interpreter's parts are in interpreter.cc
// (statements), evaluate.cc (expressions), attributes.cc, methods.cc, functions.cc, filters.cc,
// sequence_filters.cc and value_tests.cc. One thread, one run.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/template.h"
#include "engine/text/jinja/value.h"

namespace quantd::jinja {

/// The names of one block, and those around it.
struct Scope : Bindings {
  std::shared_ptr<Scope> parent;
};
using ScopePtr = std::shared_ptr<Scope>;

/// What a function, method, filter or test is called with.
struct Arguments {
  std::vector<Value> positional;
  Bindings named;

  /// The argument at this place or of this name; null where there is none.
  const Value* Get(size_t index, std::string_view name) const;
};

class Interpreter {
 public:
  Interpreter(const RenderOptions& options, int64_t input_bytes);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  absl::StatusOr<std::string> Run(const Body& body, const Bindings& variables);

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  using Result = absl::StatusOr<Value>;

  // Budgets. RESOURCE_EXHAUSTED when they are spent.
  absl::Status Charge(int64_t work);        // steps; a step is some 64 bytes of plain work
  absl::Status ChargeBytes(int64_t bytes);  // that are read, so to say
  absl::Status ChargeMemory(int64_t bytes);
  absl::Status Enter();  // one deeper; `depth_` is the caller's to restore
  Result Text(std::string text);
  Result MakeItems(std::vector<Value> items, bool tuple = false);

  // Statements.
  absl::StatusOr<Flow> Execute(const Body& body, const ScopePtr& scope);
  absl::StatusOr<Flow> ExecuteOne(const Statement& statement, const ScopePtr& scope);
  absl::StatusOr<Flow> If(const Statement& statement, const ScopePtr& scope);
  absl::StatusOr<Flow> For(const Statement& statement, const ScopePtr& scope);
  absl::Status Loop(const Statement& statement, const Value& iterable, int64_t depth,
                    const ScopePtr& scope, Flow* flow);
  absl::Status Output(std::string_view text);
  absl::StatusOr<std::string> Capture(const Body& body, const ScopePtr& scope);
  absl::Status Assign(const Target& target, const Value& value, const ScopePtr& scope);
  Result CallMacro(const MacroNode& macro, const ScopePtr& closure, const Arguments& arguments);

  // Expressions.
  Result Evaluate(const Expr& expr, const ScopePtr& scope);
  Result EvaluateOne(const Expr& expr, const ScopePtr& scope);
  Result Lookup(const std::string& name, const ScopePtr& scope);
  Result Collection(const Expr& expr, const ScopePtr& scope);
  Result Compare(const Expr& expr, const ScopePtr& scope);
  absl::StatusOr<bool> CompareTwo(const std::string& op, const Value& a, const Value& b);
  absl::StatusOr<bool> Contains(const Value& container, const Value& item);
  Result Unary(const std::string& op, const Value& value);
  Result Binary(const std::string& op, const Value& a, const Value& b);
  Result Arithmetic(const std::string& op, const Value& a, const Value& b);
  Result Repeat(const Value& sequence, int64_t count);
  Result Call(const Expr& expr, const ScopePtr& scope, const Value* caller);
  Result CallValue(const Value& callee, const Arguments& arguments);
  absl::StatusOr<Arguments> EvaluateArguments(const Expr& expr, const ScopePtr& scope);
  Result EvaluateFilter(const Expr& expr, const Value* operand, const ScopePtr& scope);
  Result ApplyFilters(const Expr& expr, const Value& operand, const ScopePtr& scope);

  // attributes.cc
  Result Attribute(const Value& object, const std::string& name);
  Result Item(const Value& object, const Value& key);
  Result Slice(const Value& object, const Expr& slice, const ScopePtr& scope);
  Result LoopAttribute(const Value& loop, const std::string& name);
  /// What a loop over `value` goes through.
  absl::StatusOr<std::vector<Value>> Iterate(const Value& value);

  // methods.cc: of strings, lists and dicts.
  Result CallMethod(const Callable& method, const Arguments& arguments);
  Result StringMethod(const std::string& text, const std::string& name, const Arguments& arguments);
  Result SearchMethod(const std::string& text, const std::string& name, const Arguments& arguments);
  Result SplitMethod(const std::string& text, const std::string& name, const Arguments& arguments);
  Result FormatMethod(const std::string& text, const Arguments& arguments);
  Result ListMethod(const ListData& list, const std::string& name, const Arguments& arguments);
  Result DictMethod(const DictData& dict, const std::string& name, const Arguments& arguments);

  // functions.cc
  Result CallFunction(const std::string& name, const Arguments& arguments);
  Result Range(const Arguments& arguments);
  Result MakeNamespace(const Arguments& arguments);
  Result FormatTime(const Arguments& arguments);

  // filters.cc and sequence_filters.cc
  using Filter = Result (Interpreter::*)(const Value&, const Arguments&);
  static Filter FindTextFilter(std::string_view name);
  static Filter FindSequenceFilter(std::string_view name);
  Result ApplyFilter(const std::string& name, const Value& value, const Arguments& arguments);
  Result FilterToJson(const Value& value, const Arguments& arguments);
  Result FilterTrim(const Value& value, const Arguments& arguments);
  Result FilterReplace(const Value& value, const Arguments& arguments);
  Result FilterIndent(const Value& value, const Arguments& arguments);
  Result FilterEscape(const Value& value, const Arguments& arguments);
  Result FilterTitle(const Value& value, const Arguments& arguments);
  Result FilterUpper(const Value& value, const Arguments& arguments);
  Result FilterLower(const Value& value, const Arguments& arguments);
  Result FilterCapitalize(const Value& value, const Arguments& arguments);
  Result FilterString(const Value& value, const Arguments& arguments);
  Result FilterInt(const Value& value, const Arguments& arguments);
  Result FilterFloat(const Value& value, const Arguments& arguments);
  Result FilterAbs(const Value& value, const Arguments& arguments);
  Result FilterRound(const Value& value, const Arguments& arguments);
  Result FilterDefault(const Value& value, const Arguments& arguments);
  Result FilterLength(const Value& value, const Arguments& arguments);
  Result FilterFirst(const Value& value, const Arguments& arguments);
  Result FilterLast(const Value& value, const Arguments& arguments);
  Result FilterJoin(const Value& value, const Arguments& arguments);
  Result FilterList(const Value& value, const Arguments& arguments);
  Result FilterReverse(const Value& value, const Arguments& arguments);
  Result FilterItems(const Value& value, const Arguments& arguments);
  Result FilterDictSort(const Value& value, const Arguments& arguments);
  Result FilterSort(const Value& value, const Arguments& arguments);
  Result FilterUnique(const Value& value, const Arguments& arguments);
  Result FilterSum(const Value& value, const Arguments& arguments);
  Result FilterMap(const Value& value, const Arguments& arguments);
  Result FilterBatch(const Value& value, const Arguments& arguments);
  Result FilterAttr(const Value& value, const Arguments& arguments);
  Result FilterMin(const Value& value, const Arguments& arguments);
  Result FilterMax(const Value& value, const Arguments& arguments);
  Result FilterSelect(const Value& value, const Arguments& arguments);
  Result FilterReject(const Value& value, const Arguments& arguments);
  Result FilterSelectAttr(const Value& value, const Arguments& arguments);
  Result FilterRejectAttr(const Value& value, const Arguments& arguments);
  Result Extreme(const Value& value, const Arguments& arguments, bool max);
  Result SelectIf(const Value& value, const Arguments& arguments, bool wanted, bool by_attribute);
  // An attribute by a path: "a.b.0".
  Result AttributePath(const Value& object, const Value& path);
  // `items` in the order of their `keys`.
  absl::StatusOr<std::vector<Value>> Sorted(const std::vector<Value>& items,
                                            const std::vector<Value>& keys, bool reverse);
  Result SortKey(const Value& value, bool case_sensitive);

  // value_tests.cc
  absl::StatusOr<bool> ApplyTest(const std::string& name, const Value& value,
                                 const Arguments& arguments);

  absl::Status Unsupported(std::string_view what) const;

  const RenderOptions& options_;
  int64_t steps_left_;
  int64_t bytes_left_;
  int depth_ = 0;
  int error_line_ = 0;  // of the innermost that failed
  std::string* out_ = nullptr;
  ScopePtr root_;
  // All of this run: they may hold each other in a circle.
  std::vector<std::shared_ptr<NamespaceData>> namespaces_;
};

/// What a filter answers to arguments it does not take.
absl::Status BadArguments(std::string_view filter);

}  // namespace quantd::jinja

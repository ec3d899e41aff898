// Expressions: operators, comparison, calls; see interpreter.h. The rules are Python's.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

constexpr std::string_view kFunctions[] = {"dict", "namespace", "raise_exception", "range",
                                           "strftime_now"};

Value Function(Callable::Kind kind, std::string name) {
  auto callable = std::make_shared<Callable>();
  callable->kind = kind;
  callable->name = std::move(name);
  return Value(Value::Storage(std::shared_ptr<const Callable>(std::move(callable))));
}

// Python's // and %: towards minus infinity, and with the divisor's sign.
int64_t FloorDivide(int64_t a, int64_t b) {
  const int64_t quotient = a / b;
  return (a % b != 0) && ((a < 0) != (b < 0)) ? quotient - 1 : quotient;
}
double Modulo(double a, double b) {
  const double rest = std::fmod(a, b);
  return rest != 0 && ((rest < 0) != (b < 0)) ? rest + b : rest;
}

// False on overflow.
bool Power(int64_t base, int64_t exponent, int64_t* out) {
  *out = 1;
  for (int64_t i = 0; i < exponent; ++i) {
    if (*out == 0 || (*out == 1 && base == 1)) return true;
    if (base == -1) {
      *out = exponent % 2 == 0 ? 1 : -1;
      return true;
    }
    if (__builtin_mul_overflow(*out, base, out)) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<Value> Interpreter::Evaluate(const Expr& expr, const ScopePtr& scope) {
  const int depth = depth_;
  absl::Status deeper = Enter();
  Result result = deeper.ok() ? EvaluateOne(expr, scope) : Result(std::move(deeper));
  depth_ = depth;
  if (!result.ok() && error_line_ == 0) error_line_ = expr.line;
  return result;
}

absl::StatusOr<Value> Interpreter::EvaluateOne(const Expr& expr, const ScopePtr& scope) {
  const auto operand = [&](size_t i) { return Evaluate(*expr.operands[i], scope); };
  switch (expr.kind) {
    case Expr::Kind::kConstant: return expr.value;
    case Expr::Kind::kName: return Lookup(expr.name, scope);
    case Expr::Kind::kList:
    case Expr::Kind::kTuple:
    case Expr::Kind::kDict: return Collection(expr, scope);
    case Expr::Kind::kAttribute: {
      ASSIGN_OR_RETURN(const Value object, operand(0));
      return Attribute(object, expr.name);
    }
    case Expr::Kind::kItem: {
      ASSIGN_OR_RETURN(const Value object, operand(0));
      if (expr.operands[1]->kind == Expr::Kind::kSlice) {
        return Slice(object, *expr.operands[1], scope);
      }
      ASSIGN_OR_RETURN(const Value key, operand(1));
      return Item(object, key);
    }
    case Expr::Kind::kSlice: return Internal("a slice by itself");
    case Expr::Kind::kCall: return Call(expr, scope, nullptr);
    case Expr::Kind::kFilter: {
      ASSIGN_OR_RETURN(const Value value, operand(0));
      return EvaluateFilter(expr, &value, scope);
    }
    case Expr::Kind::kTest: {
      ASSIGN_OR_RETURN(const Value value, operand(0));
      ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expr, scope));
      ASSIGN_OR_RETURN(const bool holds, ApplyTest(expr.name, value, arguments));
      return Value::Of(holds);
    }
    case Expr::Kind::kUnary: {
      ASSIGN_OR_RETURN(const Value value, operand(0));
      return Unary(expr.name, value);
    }
    case Expr::Kind::kBinary: {
      ASSIGN_OR_RETURN(const Value left, operand(0));
      ASSIGN_OR_RETURN(const Value right, operand(1));
      return Binary(expr.name, left, right);
    }
    case Expr::Kind::kAnd:
    case Expr::Kind::kOr: {
      ASSIGN_OR_RETURN(Value left, operand(0));
      if (left.Truth() == (expr.kind == Expr::Kind::kOr)) return left;
      return operand(1);
    }
    case Expr::Kind::kConcat: {
      std::string text;
      for (size_t i = 0; i < expr.operands.size(); ++i) {
        ASSIGN_OR_RETURN(const Value part, operand(i));
        RETURN_IF_ERROR(ChargeMemory(part.Weight()));
        text += ToText(part);
      }
      return Text(std::move(text));
    }
    case Expr::Kind::kCompare: return Compare(expr, scope);
    case Expr::Kind::kConditional: {
      ASSIGN_OR_RETURN(const Value condition, operand(0));
      if (condition.Truth()) return operand(1);
      if (expr.operands[2] != nullptr) return operand(2);
      return Value::Missing("the inline if-expression evaluated to false and no else is there");
    }
  }
  return Internal("an expression of no kind");
}

absl::StatusOr<Value> Interpreter::Lookup(const std::string& name, const ScopePtr& scope) {
  for (const Scope* at = scope.get(); at != nullptr; at = at->parent.get()) {
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(at->entries.size()) / 16));
    if (const Value* value = at->Find(name)) return *value;
  }
  if (std::find(std::begin(kFunctions), std::end(kFunctions), name) != std::end(kFunctions)) {
    return Function(Callable::Kind::kFunction, name);
  }
  return Value::Missing(fmt::format("'{}' is undefined", name));
}

absl::StatusOr<Value> Interpreter::Collection(const Expr& expr, const ScopePtr& scope) {
  std::vector<Value> items;
  for (const ExprPtr& operand : expr.operands) {
    ASSIGN_OR_RETURN(Value item, Evaluate(*operand, scope));
    items.push_back(std::move(item));
  }
  if (expr.kind != Expr::Kind::kDict) {
    return MakeItems(std::move(items), expr.kind == Expr::Kind::kTuple);
  }
  DictData dict;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(dict.entries.size())));
    RETURN_IF_ERROR(ChargeMemory(2 * static_cast<int64_t>(sizeof(Value))));
    if (items[i].Is<List>() || items[i].Is<Dict>()) {
      return InvalidArgument("a {} cannot be a key", items[i].TypeName());
    }
    dict.Set(items[i], items[i + 1]);
  }
  return MakeDict(std::move(dict));
}

absl::StatusOr<Value> Interpreter::Compare(const Expr& expr, const ScopePtr& scope) {
  ASSIGN_OR_RETURN(Value left, Evaluate(*expr.operands[0], scope));
  for (size_t i = 0; i < expr.operators.size(); ++i) {
    ASSIGN_OR_RETURN(Value right, Evaluate(*expr.operands[i + 1], scope));
    ASSIGN_OR_RETURN(const bool holds, CompareTwo(expr.operators[i], left, right));
    if (!holds) return Value::Of(false);
    left = std::move(right);
  }
  return Value::Of(true);
}

absl::StatusOr<bool> Interpreter::CompareTwo(const std::string& op, const Value& a,
                                             const Value& b) {
  if (op == "in" || op == "not in") {
    ASSIGN_OR_RETURN(const bool contains, Contains(b, a));
    return contains == (op == "in");
  }
  RETURN_IF_ERROR(ChargeBytes(16 * std::min(a.Weight(), b.Weight())));
  if (op == "==") return Equal(a, b);
  if (op == "!=") return !Equal(a, b);
  ASSIGN_OR_RETURN(const int order, jinja::Compare(a, b));
  if (op == "<") return order < 0;
  if (op == "<=") return order <= 0;
  if (op == ">") return order > 0;
  return order >= 0;
}

absl::StatusOr<bool> Interpreter::Contains(const Value& container, const Value& item) {
  RETURN_IF_ERROR(ChargeBytes(container.Weight()));
  if (const std::string* text = container.text()) {
    const std::string* part = item.text();
    if (part == nullptr) {
      return InvalidArgument("'in <string>' requires string as left operand, not {}",
                             item.TypeName());
    }
    return Find(*text, *part) != std::string::npos;
  }
  if (const List* list = container.As<List>()) {
    for (const Value& candidate : (*list)->items) {
      RETURN_IF_ERROR(ChargeBytes(16 * std::min(candidate.Weight(), item.Weight())));
      if (Equal(candidate, item)) return true;
    }
    return false;
  }
  if (const Dict* dict = container.As<Dict>()) return (*dict)->Find(item) != nullptr;
  if (container.undefined()) return false;
  return InvalidArgument("argument of type '{}' is not iterable", container.TypeName());
}

absl::StatusOr<Value> Interpreter::Unary(const std::string& op, const Value& value) {
  if (op == "not") return Value::Of(!value.Truth());
  int64_t integer = 0;
  double number = 0;
  if (value.Integer(&integer)) {
    if (op == "+") return Value::Of(integer);
    if (integer == std::numeric_limits<int64_t>::min()) {
      return InvalidArgument("-({}) needs more than 64 bits", integer);
    }
    return Value::Of(-integer);
  }
  if (value.Number(&number)) return Value::Of(op == "+" ? number : -number);
  if (const auto* missing = value.As<Undefined>()) return InvalidArgument("{}", *missing->what);
  return InvalidArgument("bad operand type for unary {}: '{}'", op, value.TypeName());
}

absl::StatusOr<Value> Interpreter::Binary(const std::string& op, const Value& a, const Value& b) {
  for (const Value* value : {&a, &b}) {
    if (const auto* missing = value->As<Undefined>()) return InvalidArgument("{}", *missing->what);
  }
  if (op == "+") {
    if (a.text() != nullptr && b.text() != nullptr) {
      RETURN_IF_ERROR(ChargeMemory(a.Weight() + b.Weight()));
      return Text(*a.text() + *b.text());
    }
    const List *left = a.As<List>(), *right = b.As<List>();
    if (left != nullptr && right != nullptr && (*left)->tuple == (*right)->tuple) {
      const size_t size = (*left)->items.size() + (*right)->items.size();
      RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(size)));
      std::vector<Value> items = (*left)->items;
      items.insert(items.end(), (*right)->items.begin(), (*right)->items.end());
      return MakeItems(std::move(items), (*left)->tuple);
    }
  }
  if (op == "*") {
    int64_t count = 0;
    if ((a.text() != nullptr || a.Is<List>()) && b.Integer(&count)) return Repeat(a, count);
    if ((b.text() != nullptr || b.Is<List>()) && a.Integer(&count)) return Repeat(b, count);
  }
  if (op == "%" && a.text() != nullptr) return Unsupported("'%' of a string");
  return Arithmetic(op, a, b);
}

absl::StatusOr<Value> Interpreter::Repeat(const Value& sequence, int64_t count) {
  count = std::max<int64_t>(count, 0);
  int64_t size = 0;
  if (__builtin_mul_overflow(count, sequence.Weight(), &size)) {
    size = std::numeric_limits<int64_t>::max() / 2;
  }
  RETURN_IF_ERROR(ChargeMemory(std::min(size, std::numeric_limits<int64_t>::max() / 4)));
  if (const std::string* text = sequence.text()) {
    std::string out;
    if (!text->empty()) {
      out.reserve(text->size() * static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) out += *text;
    }
    return Text(std::move(out));
  }
  const ListData& list = **sequence.As<List>();
  std::vector<Value> items;
  if (!list.items.empty()) {
    RETURN_IF_ERROR(ChargeMemory(count * static_cast<int64_t>(list.items.size() * sizeof(Value))));
    for (int64_t i = 0; i < count; ++i) {
      items.insert(items.end(), list.items.begin(), list.items.end());
    }
  }
  return MakeItems(std::move(items), list.tuple);
}

absl::StatusOr<Value> Interpreter::Arithmetic(const std::string& op, const Value& a,
                                              const Value& b) {
  int64_t i = 0, j = 0, out = 0;
  double x = 0, y = 0;
  if (!a.Number(&x) || !b.Number(&y)) {
    return InvalidArgument("unsupported operand type(s) for {}: '{}' and '{}'", op, a.TypeName(),
                           b.TypeName());
  }
  const bool divides = op == "/" || op == "//" || op == "%";
  if (divides && y == 0) return InvalidArgument("division by zero");
  const bool integers = a.Integer(&i) && b.Integer(&j) && op != "/" && !(op == "**" && j < 0);
  if (!integers) {
    if (op == "+") return Value::Of(x + y);
    if (op == "-") return Value::Of(x - y);
    if (op == "*") return Value::Of(x * y);
    if (op == "/") return Value::Of(x / y);
    if (op == "//") return Value::Of(std::floor(x / y));
    if (op == "%") return Value::Of(Modulo(x, y));
    return Value::Of(std::pow(x, y));
  }
  bool overflow = false;
  if (op == "+") {
    overflow = __builtin_add_overflow(i, j, &out);
  } else if (op == "-") {
    overflow = __builtin_sub_overflow(i, j, &out);
  } else if (op == "*") {
    overflow = __builtin_mul_overflow(i, j, &out);
  } else if (op == "**") {
    overflow = !Power(i, j, &out);
  } else if (j == -1) {  // the one division that can overflow
    overflow = op == "//" && __builtin_sub_overflow(int64_t{0}, i, &out);
  } else if (op == "//") {
    out = FloorDivide(i, j);
  } else {
    out = i - FloorDivide(i, j) * j;
  }
  if (overflow) return InvalidArgument("{} {} {} needs more than 64 bits", i, op, j);
  return Value::Of(out);
}

absl::StatusOr<Arguments> Interpreter::EvaluateArguments(const Expr& expr, const ScopePtr& scope) {
  Arguments arguments;
  for (size_t i = 1; i < expr.operands.size(); ++i) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*expr.operands[i], scope));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, operand] : expr.keywords) {
    ASSIGN_OR_RETURN(Value value, Evaluate(*operand, scope));
    arguments.named.entries.emplace_back(name, std::move(value));
  }
  return arguments;
}

absl::StatusOr<Value> Interpreter::Call(const Expr& expr, const ScopePtr& scope,
                                        const Value* caller) {
  ASSIGN_OR_RETURN(const Value callee, Evaluate(*expr.operands[0], scope));
  ASSIGN_OR_RETURN(Arguments arguments, EvaluateArguments(expr, scope));
  if (caller != nullptr) arguments.named.entries.emplace_back("caller", *caller);
  return CallValue(callee, arguments);
}

absl::StatusOr<Value> Interpreter::CallValue(const Value& callee, const Arguments& arguments) {
  if (const auto* missing = callee.As<Undefined>()) return InvalidArgument("{}", *missing->what);
  if (const auto* loop = callee.As<std::shared_ptr<const LoopState>>()) {
    if ((*loop)->recursive == nullptr) {
      return InvalidArgument("the loop must have the 'recursive' marker to be called");
    }
    if (arguments.positional.size() != 1) return InvalidArgument("loop() takes one argument");
    std::string text;
    std::string* outer = std::exchange(out_, &text);
    Flow flow = Flow::kNext;
    const absl::Status status = Loop(*(*loop)->recursive, arguments.positional[0],
                                     (*loop)->depth0 + 1, (*loop)->outer, &flow);
    out_ = outer;
    RETURN_IF_ERROR(status);
    return Text(std::move(text));
  }
  const auto* callable = callee.As<std::shared_ptr<const Callable>>();
  if (callable == nullptr) {
    return InvalidArgument("'{}' object is not callable", callee.TypeName());
  }
  switch ((*callable)->kind) {
    case Callable::Kind::kFunction: return CallFunction((*callable)->name, arguments);
    case Callable::Kind::kMethod: return CallMethod(**callable, arguments);
    case Callable::Kind::kMacro: return CallMacro(*(*callable)->macro, root_, arguments);
    case Callable::Kind::kCaller:
      return CallMacro(*(*callable)->macro, (*callable)->caller_scope, arguments);
  }
  return Internal("a callable of no kind");
}

absl::StatusOr<Value> Interpreter::EvaluateFilter(const Expr& expr, const Value* operand,
                                                  const ScopePtr& scope) {
  ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expr, scope));
  return ApplyFilter(expr.name, *operand, arguments);
}

// Of a set or filter block: the innermost filter has no operand of its own.
absl::StatusOr<Value> Interpreter::ApplyFilters(const Expr& expr, const Value& operand,
                                                const ScopePtr& scope) {
  if (expr.operands[0] == nullptr) return EvaluateFilter(expr, &operand, scope);
  ASSIGN_OR_RETURN(const Value inner, ApplyFilters(*expr.operands[0], operand, scope));
  return EvaluateFilter(expr, &inner, scope);
}

}  // namespace quantd::jinja

// Expressions by recursive descent, with Jinja's precedences (its parser.py). See
// expression_parser.h.
#include "engine/text/jinja/expression_parser.h"

#include <algorithm>

namespace quantd::jinja {
namespace {

bool IsKeyword(std::string_view name) {
  constexpr std::string_view kKeywords[] = {"and", "else", "if", "in", "is", "not", "or"};
  return std::find(std::begin(kKeywords), std::end(kKeywords), name) != std::end(kKeywords);
}

}  // namespace

absl::Status ExpressionParser::CheckNesting() const {
  if (nesting_ <= kMaxNesting) return absl::OkStatus();
  return ResourceExhausted("line {}: nested more than {} times", Peek().line, kMaxNesting);
}

bool ExpressionParser::Names(size_t begin, std::string_view name) const {
  for (size_t i = begin; i < at_; ++i) {
    if (tokens_[i].kind == Kind::kName && tokens_[i].text == name) return true;
  }
  return false;
}

bool ExpressionParser::TakeOperator(std::string_view text) {
  if (!IsOperator(text)) return false;
  Skip();
  return true;
}

bool ExpressionParser::TakeName(std::string_view text) {
  if (!IsName(text)) return false;
  Skip();
  return true;
}

absl::Status ExpressionParser::Fail(std::string_view what) const {
  const Token& token = Peek();
  switch (token.kind) {
    case Kind::kEnd: return InvalidArgument("line {}: {}, not the end", token.line, what);
    case Kind::kVariableEnd:
    case Kind::kBlockEnd: return InvalidArgument("line {}: {}, not a tag's end", token.line, what);
    default: return InvalidArgument("line {}: {}, not {:?}", token.line, what, token.text);
  }
}

absl::Status ExpressionParser::Expect(Kind kind, std::string_view what) {
  if (Peek().kind != kind) return Fail(fmt::format("expected {}", what));
  Skip();
  return absl::OkStatus();
}

absl::Status ExpressionParser::ExpectOperator(std::string_view text) {
  return TakeOperator(text) ? absl::OkStatus() : Fail(fmt::format("expected '{}'", text));
}

absl::StatusOr<std::string> ExpressionParser::ExpectName() {
  if (Peek().kind != Kind::kName) return Fail("expected a name");
  std::string name = Peek().text;
  Skip();
  return name;
}

Expr ExpressionParser::New(Expr::Kind kind) const {
  Expr expr;
  expr.kind = kind;
  expr.line = Peek().line;
  return expr;
}

absl::StatusOr<ExprPtr> ExpressionParser::Finish(Expr expr) const {
  int depth = 0;
  for (const ExprPtr& operand : expr.operands) {
    if (operand != nullptr) depth = std::max(depth, operand->depth);
  }
  for (const auto& [name, value] : expr.keywords) depth = std::max(depth, value->depth);
  expr.depth = depth + 1;
  if (expr.depth > kMaxDepth) {
    return ResourceExhausted("line {}: an expression of more than {} steps in each other",
                             expr.line, kMaxDepth);
  }
  return std::make_unique<const Expr>(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::Expression(bool with_condition) {
  const Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  ASSIGN_OR_RETURN(ExprPtr value, Or());
  while (with_condition && IsName("if")) {
    Expr expr = New(Expr::Kind::kConditional);
    Skip();
    ASSIGN_OR_RETURN(ExprPtr condition, Or());
    ExprPtr otherwise;
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(otherwise, Expression(true));
    }
    expr.operands.push_back(std::move(condition));
    expr.operands.push_back(std::move(value));
    expr.operands.push_back(std::move(otherwise));
    ASSIGN_OR_RETURN(value, Finish(std::move(expr)));
  }
  return value;
}

absl::StatusOr<ExprPtr> ExpressionParser::Tuple(bool with_condition) {
  Expr tuple = New(Expr::Kind::kTuple);
  ASSIGN_OR_RETURN(ExprPtr first, Expression(with_condition));
  if (!IsOperator(",")) return first;
  tuple.operands.push_back(std::move(first));
  while (TakeOperator(",")) {
    const Token& next = Peek();
    const bool end = next.kind == Kind::kBlockEnd || next.kind == Kind::kVariableEnd ||
                     IsOperator(")") || IsOperator("=") ||
                     (next.kind == Kind::kName && next.text == "in");
    if (end) break;
    ASSIGN_OR_RETURN(ExprPtr item, Expression(with_condition));
    tuple.operands.push_back(std::move(item));
  }
  return Finish(std::move(tuple));
}

absl::StatusOr<ExprPtr> ExpressionParser::Or() {
  ASSIGN_OR_RETURN(ExprPtr left, And());
  while (IsName("or")) {
    Expr expr = New(Expr::Kind::kOr);
    Skip();
    ASSIGN_OR_RETURN(ExprPtr right, And());
    expr.operands.push_back(std::move(left));
    expr.operands.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(expr)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::And() {
  ASSIGN_OR_RETURN(ExprPtr left, Not());
  while (IsName("and")) {
    Expr expr = New(Expr::Kind::kAnd);
    Skip();
    ASSIGN_OR_RETURN(ExprPtr right, Not());
    expr.operands.push_back(std::move(left));
    expr.operands.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(expr)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::Not() {
  if (!IsName("not")) return Comparison();
  const Nested nested(&nesting_);
  RETURN_IF_ERROR(CheckNesting());
  Expr expr = New(Expr::Kind::kUnary);
  expr.name = "not";
  Skip();
  ASSIGN_OR_RETURN(ExprPtr operand, Not());
  expr.operands.push_back(std::move(operand));
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::Comparison() {
  Expr expr = New(Expr::Kind::kCompare);
  ASSIGN_OR_RETURN(ExprPtr first, Sum());
  const auto next_operator = [&]() -> std::string {
    for (const std::string_view op : {"==", "!=", "<", "<=", ">", ">="}) {
      if (TakeOperator(op)) return std::string(op);
    }
    if (TakeName("in")) return "in";
    if (!IsName("not") || !IsName("in", 1)) return "";
    Skip();
    Skip();
    return "not in";
  };
  for (std::string op; !(op = next_operator()).empty();) {
    if (expr.operators.empty()) expr.operands.push_back(std::move(first));
    ASSIGN_OR_RETURN(ExprPtr operand, Sum());
    expr.operators.push_back(std::move(op));
    expr.operands.push_back(std::move(operand));
  }
  if (expr.operators.empty()) return first;
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::Chain(
    std::initializer_list<std::string_view> operators,
    absl::StatusOr<ExprPtr> (ExpressionParser::*operand)()) {
  ASSIGN_OR_RETURN(ExprPtr left, (this->*operand)());
  while (Peek().kind == Kind::kOperator &&
         std::find(operators.begin(), operators.end(), Peek().text) != operators.end()) {
    Expr expr = New(Expr::Kind::kBinary);
    expr.name = Peek().text;
    Skip();
    ASSIGN_OR_RETURN(ExprPtr right, (this->*operand)());
    expr.operands.push_back(std::move(left));
    expr.operands.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(expr)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::Sum() {
  return Chain({"+", "-"}, &ExpressionParser::Concat);
}

absl::StatusOr<ExprPtr> ExpressionParser::Concat() {
  Expr expr = New(Expr::Kind::kConcat);
  ASSIGN_OR_RETURN(ExprPtr first, Product());
  if (!IsOperator("~")) return first;
  expr.operands.push_back(std::move(first));
  while (TakeOperator("~")) {
    ASSIGN_OR_RETURN(ExprPtr operand, Product());
    expr.operands.push_back(std::move(operand));
  }
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::Product() {
  return Chain({"*", "/", "//", "%"}, &ExpressionParser::Power);
}

absl::StatusOr<ExprPtr> ExpressionParser::Power() {
  ASSIGN_OR_RETURN(ExprPtr left, Unary(true));
  while (IsOperator("**")) {
    Expr expr = New(Expr::Kind::kBinary);
    expr.name = "**";
    Skip();
    ASSIGN_OR_RETURN(ExprPtr right, Unary(true));
    expr.operands.push_back(std::move(left));
    expr.operands.push_back(std::move(right));
    ASSIGN_OR_RETURN(left, Finish(std::move(expr)));
  }
  return left;
}

absl::StatusOr<ExprPtr> ExpressionParser::Unary(bool with_filter) {
  ExprPtr node;
  if (IsOperator("-") || IsOperator("+")) {
    const Nested nested(&nesting_);
    RETURN_IF_ERROR(CheckNesting());
    Expr expr = New(Expr::Kind::kUnary);
    expr.name = Peek().text;
    Skip();
    ASSIGN_OR_RETURN(ExprPtr operand, Unary(false));
    expr.operands.push_back(std::move(operand));
    ASSIGN_OR_RETURN(node, Finish(std::move(expr)));
  } else {
    ASSIGN_OR_RETURN(node, Primary());
  }
  ASSIGN_OR_RETURN(node, Postfix(std::move(node)));
  if (!with_filter) return node;
  return FiltersAndTests(std::move(node));
}

absl::StatusOr<ExprPtr> ExpressionParser::Primary() {
  const Token& token = Peek();
  Expr expr = New(Expr::Kind::kConstant);
  switch (token.kind) {
    case Kind::kInteger: expr.value = Value::Of(token.integer); break;
    case Kind::kFloat: expr.value = Value::Of(token.number); break;
    case Kind::kString: {
      std::string text;
      for (; Peek().kind == Kind::kString; Skip()) text += Peek().text;
      expr.value = Value::Of(std::move(text));
      return Finish(std::move(expr));
    }
    case Kind::kName:
      if (token.text == "true" || token.text == "True") {
        expr.value = Value::Of(true);
      } else if (token.text == "false" || token.text == "False") {
        expr.value = Value::Of(false);
      } else if (token.text == "none" || token.text == "None") {
        expr.value = Value();
      } else if (IsKeyword(token.text)) {
        return Fail("expected an expression");
      } else {
        expr.kind = Expr::Kind::kName;
        expr.name = token.text;
      }
      break;
    case Kind::kOperator:
      if (token.text == "[" || token.text == "{") return ListOrDict();
      if (token.text == "(") {
        Skip();
        if (TakeOperator(")")) return Finish(New(Expr::Kind::kTuple));
        ASSIGN_OR_RETURN(ExprPtr inside, Tuple());
        RETURN_IF_ERROR(ExpectOperator(")"));
        return inside;
      }
      [[fallthrough]];
    default: return Fail("expected an expression");
  }
  Skip();
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::ListOrDict() {
  const bool dict = IsOperator("{");
  const std::string_view close = dict ? "}" : "]";
  Expr expr = New(dict ? Expr::Kind::kDict : Expr::Kind::kList);
  Skip();
  while (!TakeOperator(close)) {
    if (!expr.operands.empty()) {
      RETURN_IF_ERROR(ExpectOperator(","));
      if (TakeOperator(close)) break;
    }
    ASSIGN_OR_RETURN(ExprPtr item, Expression());
    expr.operands.push_back(std::move(item));
    if (!dict) continue;
    RETURN_IF_ERROR(ExpectOperator(":"));
    ASSIGN_OR_RETURN(ExprPtr value, Expression());
    expr.operands.push_back(std::move(value));
  }
  return Finish(std::move(expr));
}

absl::StatusOr<ExprPtr> ExpressionParser::Postfix(ExprPtr operand) {
  while (true) {
    if (IsOperator(".") || IsOperator("[")) {
      ASSIGN_OR_RETURN(operand, Subscript(std::move(operand)));
    } else if (IsOperator("(")) {
      Expr expr = New(Expr::Kind::kCall);
      expr.operands.push_back(std::move(operand));
      RETURN_IF_ERROR(Arguments(&expr));
      ASSIGN_OR_RETURN(operand, Finish(std::move(expr)));
    } else {
      return operand;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::Subscript(ExprPtr operand) {
  Expr expr = New(Expr::Kind::kItem);
  expr.operands.push_back(std::move(operand));
  if (TakeOperator(".")) {
    if (Peek().kind == Kind::kInteger) {
      Expr index = New(Expr::Kind::kConstant);
      index.value = Value::Of(Peek().integer);
      Skip();
      ASSIGN_OR_RETURN(ExprPtr constant, Finish(std::move(index)));
      expr.operands.push_back(std::move(constant));
      return Finish(std::move(expr));
    }
    expr.kind = Expr::Kind::kAttribute;
    ASSIGN_OR_RETURN(expr.name, ExpectName());
    return Finish(std::move(expr));
  }
  Skip();  // [
  ExprPtr parts[3];
  size_t part = 0;
  while (!IsOperator("]")) {
    if (TakeOperator(":")) {
      if (++part > 2) return Fail("expected ']'");
      continue;
    }
    if (parts[part] != nullptr) return Fail("expected ']'");
    ASSIGN_OR_RETURN(parts[part], Expression());
  }
  if (part == 0 && parts[0] == nullptr) return Fail("expected an expression");
  Skip();
  if (part == 0) {
    expr.operands.push_back(std::move(parts[0]));
    return Finish(std::move(expr));
  }
  Expr slice = New(Expr::Kind::kSlice);
  for (ExprPtr& bound : parts) slice.operands.push_back(std::move(bound));
  ASSIGN_OR_RETURN(ExprPtr finished, Finish(std::move(slice)));
  expr.operands.push_back(std::move(finished));
  return Finish(std::move(expr));
}

absl::Status ExpressionParser::Arguments(Expr* call) {
  RETURN_IF_ERROR(ExpectOperator("("));
  bool first = true;
  while (!TakeOperator(")")) {
    if (!first) {
      RETURN_IF_ERROR(ExpectOperator(","));
      if (TakeOperator(")")) break;
    }
    first = false;
    if (IsOperator("*") || IsOperator("**")) {
      return Unimplemented("line {}: '{}' before an argument is not supported", Peek().line,
                           Peek().text);
    }
    if (Peek().kind == Kind::kName && IsOperator("=", 1)) {
      std::string name = Peek().text;
      Skip();
      Skip();
      ASSIGN_OR_RETURN(ExprPtr value, Expression());
      call->keywords.emplace_back(std::move(name), std::move(value));
      continue;
    }
    if (!call->keywords.empty()) return Fail("expected a named argument");
    ASSIGN_OR_RETURN(ExprPtr value, Expression());
    call->operands.push_back(std::move(value));
  }
  return absl::OkStatus();
}

absl::StatusOr<ExprPtr> ExpressionParser::FiltersAndTests(ExprPtr operand) {
  while (true) {
    if (IsOperator("|")) {
      ASSIGN_OR_RETURN(operand, Filters(std::move(operand), false));
    } else if (IsName("is")) {
      ASSIGN_OR_RETURN(operand, Test(std::move(operand)));
    } else if (IsOperator("(")) {
      ASSIGN_OR_RETURN(operand, Postfix(std::move(operand)));
    } else {
      return operand;
    }
  }
}

absl::StatusOr<ExprPtr> ExpressionParser::Filters(ExprPtr operand, bool first) {
  while (std::exchange(first, false) || TakeOperator("|")) {
    Expr expr = New(Expr::Kind::kFilter);
    ASSIGN_OR_RETURN(expr.name, ExpectName());
    expr.operands.push_back(std::move(operand));
    if (IsOperator("(")) RETURN_IF_ERROR(Arguments(&expr));
    ASSIGN_OR_RETURN(operand, Finish(std::move(expr)));
  }
  return operand;
}

absl::StatusOr<ExprPtr> ExpressionParser::Test(ExprPtr operand) {
  Skip();  // is
  const bool negated = TakeName("not");
  Expr expr = New(Expr::Kind::kTest);
  ASSIGN_OR_RETURN(expr.name, ExpectName());
  expr.operands.push_back(std::move(operand));
  const Token& next = Peek();
  const bool name = next.kind == Kind::kName && !IsKeyword(next.text);
  const bool value = next.kind == Kind::kString || next.kind == Kind::kInteger ||
                     next.kind == Kind::kFloat || IsOperator("[") || IsOperator("{");
  if (IsOperator("(")) {
    RETURN_IF_ERROR(Arguments(&expr));
  } else if (name || value) {
    ASSIGN_OR_RETURN(ExprPtr argument, Primary());
    ASSIGN_OR_RETURN(argument, Postfix(std::move(argument)));
    expr.operands.push_back(std::move(argument));
  }
  ASSIGN_OR_RETURN(ExprPtr test, Finish(std::move(expr)));
  if (!negated) return test;
  Expr inverse = New(Expr::Kind::kUnary);
  inverse.name = "not";
  inverse.operands.push_back(std::move(test));
  return Finish(std::move(inverse));
}

}  // namespace quantd::jinja

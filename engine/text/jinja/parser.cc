// The statements of a chat template; see parser.h.
#include "engine/text/jinja/parser.h"

#include <algorithm>
#include <string>
#include <utility>

#include "engine/text/jinja/expression_parser.h"

namespace quantd::jinja {
namespace {

using Ends = std::initializer_list<std::string_view>;

class Parser : public ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  absl::StatusOr<Body> Run() {
    ASSIGN_OR_RETURN(Body body, Statements({}));
    if (Peek().kind != Kind::kEnd) return Fail("expected no more");
    return body;
  }

 private:
  using StatementPtr = std::unique_ptr<Statement>;

  StatementPtr New(Statement::Kind kind) const {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = Peek().line;
    return statement;
  }

  bool AtEnd(Ends ends) const {
    return std::find(ends.begin(), ends.end(), std::string_view(Peek(1).text)) != ends.end();
  }

  // Up to a tag that begins with one of `ends`, whose name is then next; without `ends` up to the
  // template's end.
  absl::StatusOr<Body> Statements(Ends ends) {
    const Nested nested(&nesting_);
    RETURN_IF_ERROR(CheckNesting());
    Body body;
    while (true) {
      switch (Peek().kind) {
        case Kind::kData: {
          StatementPtr text = New(Statement::Kind::kText);
          text->text = Peek().text;
          Skip();
          body.push_back(std::move(text));
          break;
        }
        case Kind::kVariableBegin: {
          StatementPtr output = New(Statement::Kind::kOutput);
          Skip();
          ASSIGN_OR_RETURN(output->expr, Tuple());
          RETURN_IF_ERROR(Expect(Kind::kVariableEnd, "}}"));
          body.push_back(std::move(output));
          break;
        }
        case Kind::kBlockBegin: {
          if (Peek(1).kind == Kind::kName && AtEnd(ends)) {
            Skip();
            return body;
          }
          Skip();
          ASSIGN_OR_RETURN(StatementPtr statement, Tag());
          body.push_back(std::move(statement));
          break;
        }
        default:
          if (ends.size() == 0) return body;
          return Fail(fmt::format("expected {{% {} %}}", *(ends.end() - 1)));
      }
    }
  }

  absl::Status EndTag() { return Expect(Kind::kBlockEnd, "%}"); }

  // The statements of a tag up to its end tag, which is read.
  absl::StatusOr<Body> BodyUntil(std::string_view end) {
    RETURN_IF_ERROR(EndTag());
    ASSIGN_OR_RETURN(Body body, Statements({end}));
    Skip();
    return body;
  }

  absl::StatusOr<StatementPtr> Tag() {
    const int line = Peek().line;
    ASSIGN_OR_RETURN(const std::string name, ExpectName());
    StatementPtr statement;
    if (name == "if") {
      ASSIGN_OR_RETURN(statement, If());
    } else if (name == "for") {
      ASSIGN_OR_RETURN(statement, For());
    } else if (name == "set") {
      ASSIGN_OR_RETURN(statement, Set());
    } else if (name == "macro") {
      statement = New(Statement::Kind::kMacro);
      ASSIGN_OR_RETURN(const std::string macro, ExpectName());
      ASSIGN_OR_RETURN(statement->macro, Macro(macro, "endmacro"));
    } else if (name == "call") {
      ASSIGN_OR_RETURN(statement, Call());
    } else if (name == "filter") {
      statement = New(Statement::Kind::kFilterBlock);
      ASSIGN_OR_RETURN(statement->filter, Filters(nullptr, true));
      ASSIGN_OR_RETURN(statement->body, BodyUntil("endfilter"));
    } else if (name == "with") {
      ASSIGN_OR_RETURN(statement, With());
    } else if (name == "generation") {
      statement = New(Statement::Kind::kScope);
      ASSIGN_OR_RETURN(statement->body, BodyUntil("endgeneration"));
    } else if (name == "break" || name == "continue") {
      if (loops_ == 0) return InvalidArgument("line {}: '{}' outside of a loop", line, name);
      statement = New(name == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue);
    } else {
      constexpr std::string_view kOthers[] = {"autoescape", "block",  "debug",   "do",   "extends",
                                              "from",       "import", "include", "trans"};
      const bool known =
          std::find(std::begin(kOthers), std::end(kOthers), name) != std::end(kOthers);
      if (known) return Unimplemented("line {}: the tag '{}' is not supported", line, name);
      return InvalidArgument("line {}: '{}' is not a tag that could stand here", line, name);
    }
    statement->line = line;
    RETURN_IF_ERROR(EndTag());
    return statement;
  }

  absl::StatusOr<StatementPtr> If() {
    StatementPtr statement = New(Statement::Kind::kIf);
    while (true) {
      ASSIGN_OR_RETURN(ExprPtr condition, Tuple(false));
      RETURN_IF_ERROR(EndTag());
      ASSIGN_OR_RETURN(Body body, Statements({"elif", "else", "endif"}));
      statement->branches.emplace_back(std::move(condition), std::move(body));
      if (TakeName("elif")) continue;
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(statement->otherwise, BodyUntil("endif"));
      } else {
        Skip();
      }
      return statement;
    }
  }

  absl::StatusOr<StatementPtr> For() {
    StatementPtr statement = New(Statement::Kind::kFor);
    ASSIGN_OR_RETURN(statement->target, Targets(false));
    if (!TakeName("in")) return Fail("expected 'in'");
    ASSIGN_OR_RETURN(statement->expr, Tuple(false));
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(statement->condition, Expression());
    }
    statement->recursive = TakeName("recursive");
    RETURN_IF_ERROR(EndTag());
    ++loops_;
    absl::StatusOr<Body> body = Statements({"else", "endfor"});
    --loops_;
    if (!body.ok()) return body.status();
    statement->body = *std::move(body);
    if (TakeName("else")) {
      ASSIGN_OR_RETURN(statement->otherwise, BodyUntil("endfor"));
    } else {
      Skip();
    }
    return statement;
  }

  // One target, or several with commas between them.
  absl::StatusOr<Target> Targets(bool with_namespace) {
    Target all;
    ASSIGN_OR_RETURN(Target first, OneTarget(with_namespace));
    if (!IsOperator(",")) return first;
    all.parts.push_back(std::move(first));
    while (TakeOperator(",")) {
      if (IsOperator("=") || IsName("in") || IsOperator(")")) break;
      ASSIGN_OR_RETURN(Target next, OneTarget(with_namespace));
      all.parts.push_back(std::move(next));
    }
    return all;
  }

  absl::StatusOr<Target> OneTarget(bool with_namespace) {
    const Nested nested(&nesting_);
    RETURN_IF_ERROR(CheckNesting());
    if (TakeOperator("(")) {
      ASSIGN_OR_RETURN(Target inside, Targets(with_namespace));
      RETURN_IF_ERROR(ExpectOperator(")"));
      return inside;
    }
    Target target;
    ASSIGN_OR_RETURN(target.name, ExpectName());
    constexpr std::string_view kReserved[] = {"true", "false", "none", "True", "False", "None",
                                              "loop", "not",   "and",  "or",   "if"};
    if (std::find(std::begin(kReserved), std::end(kReserved), target.name) != std::end(kReserved)) {
      return InvalidArgument("line {}: nothing can be assigned to '{}'", Peek().line, target.name);
    }
    if (with_namespace && TakeOperator(".")) {
      ASSIGN_OR_RETURN(target.attribute, ExpectName());
    }
    return target;
  }

  absl::StatusOr<StatementPtr> Set() {
    StatementPtr statement = New(Statement::Kind::kSet);
    ASSIGN_OR_RETURN(statement->target, Targets(true));
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(statement->expr, Tuple());
      return statement;
    }
    statement->kind = Statement::Kind::kSetBlock;
    if (TakeOperator("|")) {
      ASSIGN_OR_RETURN(statement->filter, Filters(nullptr, true));
    }
    ASSIGN_OR_RETURN(statement->body, BodyUntil("endset"));
    return statement;
  }

  // Parameters and body, of a macro or of what a call block may call.
  absl::StatusOr<std::unique_ptr<MacroNode>> Macro(std::string name, std::string_view end) {
    auto macro = std::make_unique<MacroNode>();
    macro->name = std::move(name);
    RETURN_IF_ERROR(Parameters(macro.get()));
    RETURN_IF_ERROR(MacroBody(macro.get(), end));
    return macro;
  }

  absl::Status Parameters(MacroNode* macro) {
    RETURN_IF_ERROR(ExpectOperator("("));
    while (!TakeOperator(")")) {
      if (!macro->parameters.empty()) RETURN_IF_ERROR(ExpectOperator(","));
      if (TakeOperator(")")) break;
      MacroNode::Parameter parameter;
      ASSIGN_OR_RETURN(parameter.name, ExpectName());
      if (TakeOperator("=")) {
        ASSIGN_OR_RETURN(parameter.otherwise, Expression());
      } else if (!macro->parameters.empty() && macro->parameters.back().otherwise != nullptr) {
        return Fail("expected a parameter with a default");
      }
      macro->parameters.push_back(std::move(parameter));
    }
    return absl::OkStatus();
  }

  absl::Status MacroBody(MacroNode* macro, std::string_view end) {
    const int loops = std::exchange(loops_, 0);  // no break out of a macro
    const size_t begin = position();
    absl::StatusOr<Body> body = BodyUntil(end);
    loops_ = loops;
    if (!body.ok()) return body.status();
    macro->body = *std::move(body);
    macro->takes_varargs = Names(begin, "varargs");
    macro->takes_kwargs = Names(begin, "kwargs");
    macro->takes_caller = Names(begin, "caller");
    return absl::OkStatus();
  }

  absl::StatusOr<StatementPtr> Call() {
    StatementPtr statement = New(Statement::Kind::kCallBlock);
    statement->macro = std::make_unique<MacroNode>();
    statement->macro->name = "caller";
    if (IsOperator("(")) RETURN_IF_ERROR(Parameters(statement->macro.get()));
    ASSIGN_OR_RETURN(statement->expr, Expression());
    if (statement->expr->kind != Expr::Kind::kCall) return Fail("expected a call");
    RETURN_IF_ERROR(MacroBody(statement->macro.get(), "endcall"));
    return statement;
  }

  absl::StatusOr<StatementPtr> With() {
    StatementPtr statement = New(Statement::Kind::kWith);
    while (Peek().kind != Kind::kBlockEnd) {
      if (!statement->assignments.empty()) RETURN_IF_ERROR(ExpectOperator(","));
      ASSIGN_OR_RETURN(Target target, OneTarget(false));
      RETURN_IF_ERROR(ExpectOperator("="));
      ASSIGN_OR_RETURN(ExprPtr value, Expression());
      statement->assignments.emplace_back(std::move(target), std::move(value));
    }
    ASSIGN_OR_RETURN(statement->body, BodyUntil("endwith"));
    return statement;
  }

  int loops_ = 0;  // that are open
};

}  // namespace

absl::StatusOr<Body> Parse(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace quantd::jinja

// Statements and budgets; see interpreter.h.
#include "engine/text/jinja/interpreter.h"

#include <algorithm>

#include "engine/text/jinja/parser.h"
#include "kernels/status.h"

namespace quantd::jinja {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;
// Macros that call themselves and expressions in each other: a level of a macro takes up to
// three kilobytes of stack, with AddressSanitizer ten times as many, and a thread has eight
// thousand.
constexpr int kMaxDepth = 200;
constexpr int64_t kBytesAStep = 64;

}  // namespace

const Value* Arguments::Get(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  return named.Find(name);
}

Interpreter::Interpreter(const RenderOptions& options, int64_t input_bytes)
    : options_(options),
      steps_left_(options.max_steps + 8 * input_bytes),
      bytes_left_(options.max_bytes + 64 * input_bytes) {}

Interpreter::~Interpreter() {
  for (const auto& space : namespaces_) {
    // Not by clear(): values that hold this one must find it whole.
    std::exchange(space->entries, {});
  }
}

absl::Status Interpreter::Charge(int64_t work) {
  steps_left_ -= work;
  if (steps_left_ >= 0) return absl::OkStatus();
  return ResourceExhausted("the template takes more than {} steps", options_.max_steps);
}

absl::Status Interpreter::ChargeBytes(int64_t bytes) { return Charge(1 + bytes / kBytesAStep); }

absl::Status Interpreter::ChargeMemory(int64_t bytes) {
  bytes_left_ -= bytes;
  if (bytes_left_ >= 0) return absl::OkStatus();
  return ResourceExhausted("the template makes more than {} bytes", options_.max_bytes);
}

absl::Status Interpreter::Enter() {
  RETURN_IF_ERROR(Charge(1));
  if (++depth_ <= kMaxDepth) return absl::OkStatus();
  return ResourceExhausted("the template calls itself, or is nested, more than {} times",
                           kMaxDepth);
}

absl::StatusOr<Value> Interpreter::Text(std::string text) {
  const auto size = static_cast<int64_t>(text.size());
  RETURN_IF_ERROR(ChargeMemory(size + 32));
  RETURN_IF_ERROR(ChargeBytes(size));
  return Value::Of(std::move(text));
}

absl::StatusOr<Value> Interpreter::MakeItems(std::vector<Value> items, bool tuple) {
  const auto count = static_cast<int64_t>(items.size());
  RETURN_IF_ERROR(ChargeMemory(count * static_cast<int64_t>(sizeof(Value)) + 64));
  RETURN_IF_ERROR(Charge(1 + count / 4));
  return MakeList(std::move(items), tuple);
}

absl::Status Interpreter::Unsupported(std::string_view what) const {
  return Unimplemented("{} is not supported", what);
}

absl::StatusOr<std::string> Interpreter::Run(const Body& body, const Bindings& variables) {
  auto globals = std::make_shared<Scope>();
  globals->entries = variables.entries;
  root_ = std::make_shared<Scope>();
  root_->parent = std::move(globals);
  std::string text;
  out_ = &text;
  const absl::StatusOr<Flow> flow = Execute(body, root_);
  if (!flow.ok()) return Annotate(flow.status(), fmt::format("line {}", error_line_));
  return text;
}

absl::StatusOr<Interpreter::Flow> Interpreter::Execute(const Body& body, const ScopePtr& scope) {
  const int depth = depth_;
  for (const auto& statement : body) {
    if (const absl::Status deeper = Enter(); !deeper.ok()) {
      if (error_line_ == 0) error_line_ = statement->line;
      return deeper;
    }
    absl::StatusOr<Flow> flow = ExecuteOne(*statement, scope);
    depth_ = depth;
    if (!flow.ok() && error_line_ == 0) error_line_ = statement->line;
    if (!flow.ok() || *flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::ExecuteOne(const Statement& statement,
                                                          const ScopePtr& scope) {
  switch (statement.kind) {
    case Statement::Kind::kText: RETURN_IF_ERROR(Output(statement.text)); break;
    case Statement::Kind::kOutput: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expr, scope));
      RETURN_IF_ERROR(ChargeBytes(value.Weight()));
      RETURN_IF_ERROR(Output(ToText(value)));
      break;
    }
    case Statement::Kind::kIf: return If(statement, scope);
    case Statement::Kind::kFor: return For(statement, scope);
    case Statement::Kind::kSet: {
      ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expr, scope));
      RETURN_IF_ERROR(Assign(statement.target, value, scope));
      break;
    }
    case Statement::Kind::kSetBlock:
    case Statement::Kind::kFilterBlock: {
      auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      ASSIGN_OR_RETURN(std::string text, Capture(statement.body, inner));
      ASSIGN_OR_RETURN(Value value, Text(std::move(text)));
      if (statement.filter != nullptr) {
        ASSIGN_OR_RETURN(value, ApplyFilters(*statement.filter, value, scope));
      }
      if (statement.kind == Statement::Kind::kSetBlock) {
        RETURN_IF_ERROR(Assign(statement.target, value, scope));
      } else {
        RETURN_IF_ERROR(Output(ToText(value)));
      }
      break;
    }
    case Statement::Kind::kMacro: {
      auto macro = std::make_shared<Callable>();
      macro->kind = Callable::Kind::kMacro;
      macro->name = statement.macro->name;
      macro->macro = statement.macro.get();
      scope->Set(macro->name, Value(Value::Storage(std::shared_ptr<const Callable>(macro))));
      break;
    }
    case Statement::Kind::kCallBlock: {
      auto caller = std::make_shared<Callable>();
      caller->kind = Callable::Kind::kCaller;
      caller->name = "caller";
      caller->macro = statement.macro.get();
      caller->caller_scope = scope;
      const Value value{Value::Storage(std::shared_ptr<const Callable>(caller))};
      ASSIGN_OR_RETURN(const Value text, Call(*statement.expr, scope, &value));
      RETURN_IF_ERROR(Output(ToText(text)));
      break;
    }
    case Statement::Kind::kWith: {
      auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      for (const auto& [target, expr] : statement.assignments) {
        ASSIGN_OR_RETURN(const Value value, Evaluate(*expr, scope));
        RETURN_IF_ERROR(Assign(target, value, inner));
      }
      return Execute(statement.body, inner);
    }
    case Statement::Kind::kScope: {
      auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      return Execute(statement.body, inner);
    }
    case Statement::Kind::kBreak: return Flow::kBreak;
    case Statement::Kind::kContinue: return Flow::kContinue;
  }
  return Flow::kNext;
}

absl::StatusOr<Interpreter::Flow> Interpreter::If(const Statement& statement,
                                                  const ScopePtr& scope) {
  for (const auto& [condition, body] : statement.branches) {
    ASSIGN_OR_RETURN(const Value value, Evaluate(*condition, scope));
    if (value.Truth()) return Execute(body, scope);
  }
  return Execute(statement.otherwise, scope);
}

absl::StatusOr<Interpreter::Flow> Interpreter::For(const Statement& statement,
                                                   const ScopePtr& scope) {
  ASSIGN_OR_RETURN(const Value iterable, Evaluate(*statement.expr, scope));
  Flow flow = Flow::kNext;
  RETURN_IF_ERROR(Loop(statement, iterable, 0, scope, &flow));
  return flow;
}

absl::Status Interpreter::Loop(const Statement& statement, const Value& iterable, int64_t depth,
                               const ScopePtr& scope, Flow* flow) {
  ASSIGN_OR_RETURN(std::vector<Value> items, Iterate(iterable));
  if (statement.condition != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      auto inner = std::make_shared<Scope>();
      inner->parent = scope;
      RETURN_IF_ERROR(Assign(statement.target, item, inner));
      ASSIGN_OR_RETURN(const Value wanted, Evaluate(*statement.condition, inner));
      if (wanted.Truth()) kept.push_back(std::move(item));
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    ASSIGN_OR_RETURN(*flow, Execute(statement.otherwise, scope));
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const Value all, MakeItems(std::move(items)));
  const List list = *all.As<List>();
  for (size_t i = 0; i < list->items.size(); ++i) {
    RETURN_IF_ERROR(Charge(2));
    auto inner = std::make_shared<Scope>();
    inner->parent = scope;
    auto loop = std::make_shared<LoopState>();
    loop->items = list;
    loop->index0 = static_cast<int64_t>(i);
    loop->depth0 = depth;
    if (statement.recursive) {
      loop->recursive = &statement;
      loop->outer = scope;
    }
    inner->Set("loop", Value(Value::Storage(std::shared_ptr<const LoopState>(loop))));
    RETURN_IF_ERROR(Assign(statement.target, list->items[i], inner));
    ASSIGN_OR_RETURN(const Flow inside, Execute(statement.body, inner));
    if (inside == Flow::kBreak) break;
  }
  return absl::OkStatus();
}

absl::Status Interpreter::Output(std::string_view text) {
  RETURN_IF_ERROR(ChargeMemory(static_cast<int64_t>(text.size())));
  RETURN_IF_ERROR(ChargeBytes(static_cast<int64_t>(text.size())));
  out_->append(text);
  return absl::OkStatus();
}

absl::StatusOr<std::string> Interpreter::Capture(const Body& body, const ScopePtr& scope) {
  std::string text;
  std::string* outer = std::exchange(out_, &text);
  const absl::StatusOr<Flow> flow = Execute(body, scope);
  out_ = outer;
  RETURN_IF_ERROR(flow.status());
  return text;
}

absl::Status Interpreter::Assign(const Target& target, const Value& value, const ScopePtr& scope) {
  RETURN_IF_ERROR(Charge(1));
  if (!target.parts.empty()) {
    ASSIGN_OR_RETURN(const std::vector<Value> items, Iterate(value));
    if (items.size() != target.parts.size()) {
      return InvalidArgument("{} values to assign to {} names", items.size(), target.parts.size());
    }
    for (size_t i = 0; i < items.size(); ++i) {
      RETURN_IF_ERROR(Assign(target.parts[i], items[i], scope));
    }
    return absl::OkStatus();
  }
  if (target.attribute.empty()) {
    RETURN_IF_ERROR(ChargeMemory(64));
    RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>(scope->entries.size()) / 16));
    scope->Set(target.name, value);
    return absl::OkStatus();
  }
  ASSIGN_OR_RETURN(const Value object, Lookup(target.name, scope));
  const auto* space = object.As<std::shared_ptr<NamespaceData>>();
  if (space == nullptr) {
    return InvalidArgument("cannot assign attribute on non-namespace object '{}'", target.name);
  }
  if (target.attribute.starts_with('_')) {
    return InvalidArgument("cannot store the attribute '{}' on a namespace", target.attribute);
  }
  RETURN_IF_ERROR(Charge(1 + static_cast<int64_t>((*space)->entries.size()) / 16));
  (*space)->Set(target.attribute, value);
  return absl::OkStatus();
}

absl::StatusOr<Value> Interpreter::CallMacro(const MacroNode& macro, const ScopePtr& closure,
                                             const Arguments& arguments) {
  auto scope = std::make_shared<Scope>();
  scope->parent = closure;
  const auto& parameters = macro.parameters;
  std::vector<bool> given(parameters.size());
  std::vector<Value> more;
  for (size_t i = 0; i < arguments.positional.size(); ++i) {
    if (i < parameters.size()) {
      scope->Set(parameters[i].name, arguments.positional[i]);
      given[i] = true;
    } else {
      more.push_back(arguments.positional[i]);
    }
  }
  if (!more.empty() && !macro.takes_varargs) {
    return InvalidArgument("macro '{}' takes not more than {} arguments", macro.name,
                           parameters.size());
  }
  DictData keywords;
  for (const auto& argument : arguments.named.entries) {
    const std::string& name = argument.first;
    const Value& value = argument.second;
    const auto found = std::find_if(parameters.begin(), parameters.end(),
                                    [&](const auto& parameter) { return parameter.name == name; });
    if (found != parameters.end()) {
      scope->Set(name, value);
      given[static_cast<size_t>(found - parameters.begin())] = true;
    } else if (name == "caller") {
      scope->Set("caller", value);
    } else if (macro.takes_kwargs) {
      keywords.Set(Value::Of(name), value);
    } else {
      return InvalidArgument("macro '{}' takes no argument '{}'", macro.name, name);
    }
  }
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (given[i]) continue;
    Value value =
        Value::Missing(fmt::format("parameter '{}' was not provided", parameters[i].name));
    if (parameters[i].otherwise != nullptr) {
      ASSIGN_OR_RETURN(value, Evaluate(*parameters[i].otherwise, scope));
    }
    scope->Set(parameters[i].name, std::move(value));
  }
  if (macro.takes_varargs) {
    ASSIGN_OR_RETURN(Value varargs, MakeItems(std::move(more), true));
    scope->Set("varargs", std::move(varargs));
  }
  if (macro.takes_kwargs) {
    ASSIGN_OR_RETURN(Value kwargs, MakeDict(std::move(keywords)));
    scope->Set("kwargs", std::move(kwargs));
  }
  if (macro.takes_caller &&
      std::none_of(arguments.named.entries.begin(), arguments.named.entries.end(),
                   [](const auto& a) { return a.first == "caller"; })) {
    scope->Set("caller", Value::Missing("No caller defined"));
  }
  ASSIGN_OR_RETURN(std::string text, Capture(macro.body, scope));
  return Text(std::move(text));
}

// ---- Template

struct Template::Tree {
  Body body;
};

Template::Template(std::unique_ptr<const Tree> tree) : tree_(std::move(tree)) {}
Template::~Template() = default;

absl::StatusOr<std::unique_ptr<Template>> Template::Parse(std::string_view source) {
  if (source.size() > kMaxSourceBytes) {
    return ResourceExhausted("a template of {} bytes, at most {} are read", source.size(),
                             kMaxSourceBytes);
  }
  ASSIGN_OR_RETURN(Body body, jinja::Parse(source));
  return std::unique_ptr<Template>(
      new Template(std::make_unique<const Tree>(Tree{std::move(body)})));
}

absl::StatusOr<std::string> Template::Render(const Bindings& variables,
                                             const RenderOptions& options) const {
  int64_t input = 0;
  for (const auto& [name, value] : variables.entries) input += value.Weight();
  return Interpreter(options, input).Run(tree_->body, variables);
}

}  // namespace quantd::jinja

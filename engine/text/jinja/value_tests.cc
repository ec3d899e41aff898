// Tests: what may stand after "is". See interpreter.h.
#include <algorithm>

#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/python_text.h"
#include "kernels/status.h"

namespace quantd::jinja {

absl::StatusOr<bool> Interpreter::ApplyTest(const std::string& name, const Value& value,
                                            const Arguments& arguments) {
  RETURN_IF_ERROR(Charge(1));
  if (name == "defined") return !value.undefined();
  if (name == "undefined") return value.undefined();
  if (name == "none") return value.none();
  if (name == "string") return value.text() != nullptr;
  if (name == "mapping") return value.Is<Dict>();
  if (name == "boolean") return value.Is<bool>();
  if (name == "true" || name == "false") {
    const auto* boolean = value.As<bool>();
    return boolean != nullptr && *boolean == (name == "true");
  }
  if (name == "integer") return value.Is<int64_t>();
  if (name == "float") return value.Is<double>();
  double number = 0;
  if (name == "number") return value.Number(&number);
  if (name == "sequence" || name == "iterable") {
    return value.text() != nullptr || value.Is<List>() || value.Is<Dict>() || value.undefined();
  }
  if (name == "callable") {
    return value.Is<std::shared_ptr<const Callable>>() ||
           value.Is<std::shared_ptr<const LoopState>>();
  }
  if (name == "lower" || name == "upper") {
    const std::string text = ToText(value);
    RETURN_IF_ERROR(ChargeBytes(static_cast<int64_t>(text.size())));
    return HasCase(text, name == "upper");
  }
  constexpr std::pair<std::string_view, std::string_view> kOperators[] = {
      {"==", "=="},         {"eq", "=="}, {"equalto", "=="}, {"!=", "!="},
      {"ne", "!="},         {"<", "<"},   {"lt", "<"},       {"lessthan", "<"},
      {"<=", "<="},         {"le", "<="}, {">", ">"},        {"gt", ">"},
      {"greaterthan", ">"}, {">=", ">="}, {"ge", ">="},      {"in", "in"}};
  const auto* found = std::find_if(std::begin(kOperators), std::end(kOperators),
                                   [&](const auto& entry) { return entry.first == name; });
  const Value* other = arguments.Get(0, "");
  const auto need_argument = [&] {
    return InvalidArgument("the test '{}' needs an argument", name);
  };
  if (found != std::end(kOperators)) {
    if (other == nullptr) return need_argument();
    return CompareTwo(std::string(found->second), value, *other);
  }
  if (name == "sameas") {
    if (other == nullptr) return need_argument();
    return value.TypeName() == other->TypeName() && Equal(value, *other);
  }
  int64_t integer = 0, divisor = 0;
  if (name == "odd" || name == "even") {
    if (!value.Integer(&integer)) return InvalidArgument("{} is no integer", value.TypeName());
    return (integer % 2 != 0) == (name == "odd");
  }
  if (name == "divisibleby") {
    if (other == nullptr) return need_argument();
    if (!value.Integer(&integer) || !other->Integer(&divisor) || divisor == 0) {
      return InvalidArgument("divisibleby needs integers, and a divisor that is not 0");
    }
    return divisor == -1 || integer % divisor == 0;
  }
  return Unsupported(fmt::format("the test '{}'", name));
}

}  // namespace quantd::jinja

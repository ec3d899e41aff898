// The table of methods. One line each; a new method is added here.
#include <array>

#include "engine/weights/methods/method.h"

namespace quantd {

std::span<const ImportMethod* const> ImportMethods() {
  static const std::array<const ImportMethod*, 2> kMethods = {&BitsAndBytes4Import(),
                                                              &BitsAndBytes8Import()};
  return kMethods;
}

const QuantizeMethod& QuantizeMethodFor(QuantMethod method) {
  switch (method) {
    case QuantMethod::kNone: return PlainMethod();
    case QuantMethod::kBitsAndBytes4: return BitsAndBytes4Method();
    case QuantMethod::kBitsAndBytes8: return BitsAndBytes8Method();
  }
  return PlainMethod();
}

ActivationQuant ActivationOf(const MethodOptions& options, ActivationQuant::OutlierScope scope) {
  if (options.method != QuantMethod::kBitsAndBytes8) return {};
  return {ActivationQuant::Kind::kInt8Outlier, options.int8_threshold, scope};
}

}  // namespace quantd

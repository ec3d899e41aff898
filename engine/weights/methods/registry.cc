// The table of methods. One line each; a new method is added here.
#include "engine/weights/methods/method.h"
#include "kernels/check.h"

namespace quantd {

std::span<const Method* const> Methods() {
  static const Method* const kMethods[] = {
      &NoneMethod(),
      &BitsAndBytesMethod(),
      &GptqMethod(),
      &AwqMethod(),
      &AutoRoundMethod(),
      &HqqMethod(),
      &CompressedTensorsMethod(),
      &Fp8Method(),
      &TorchAoMethod(),
  };
  return kMethods;
}

const Method* FindMethod(std::string_view quant_method) {
  for (const Method* m : Methods()) {
    if (m->name() == quant_method) return m;
  }
  return nullptr;
}

const Method& MethodOf(const MethodOptions& options) {
  const Method* method = FindMethod(options.method);
  QUANTD_CHECK(method != nullptr, "no method \"{}\"", options.method);
  return *method;
}

}  // namespace quantd

// The table of methods. A new one is declared and listed here: two lines. Methods do not register
// themselves, since a linker leaves out an object of a static library that nobody names.
#include "engine/weights/methods/method.h"
#include "kernels/check.h"

namespace quantd {

// Those that method.h does not declare.
const Method& MetalMethod();

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
      &MetalMethod(),
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

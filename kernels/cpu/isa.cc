// Which instruction sets this processor and operating system offer. Pure queries; thread-safe.
#include <cpuid.h>

#include <string_view>
#include <vector>

#include "kernels/cpu/cpu_backend.h"

namespace quantd {

std::string_view ToString(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
    case CpuIsa::kAvx512Vnni: return "avx512vnni";
    case CpuIsa::kAvx512Bf16: return "avx512bf16";
  }
  return "unknown";
}

namespace {

// __builtin_cpu_supports does not know the name "f16c" in every compiler.
bool HasF16c() {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

std::vector<CpuIsa> IsasOfProcessor() {
  // __builtin_cpu_supports checks XCR0 as well: an operating system that does not save the wide
  // registers makes it answer no.
  __builtin_cpu_init();
  std::vector<CpuIsa> isas;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !HasF16c() ||
      !__builtin_cpu_supports("bmi2")) {
    return isas;
  }
  isas.push_back(CpuIsa::kAvx2);
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512cd")) {
    return isas;
  }
  isas.push_back(CpuIsa::kAvx512);
  if (!__builtin_cpu_supports("avx512vnni")) return isas;
  isas.push_back(CpuIsa::kAvx512Vnni);
  if (__builtin_cpu_supports("avx512bf16")) isas.push_back(CpuIsa::kAvx512Bf16);
  return isas;
}

}  // namespace

std::vector<CpuIsa> SupportedIsas() {
  std::vector<CpuIsa> isas = IsasOfProcessor();
  if (isas.size() > QUANTD_CPU_ISAS) isas.resize(QUANTD_CPU_ISAS);
  return isas;
}

}  // namespace quantd

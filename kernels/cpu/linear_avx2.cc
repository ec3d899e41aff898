// Linear's micro-kernels for AVX2, FMA and F16C. The pragma stands after all headers, so that no
// inline function of theirs is compiled for this instruction set and then picked by the linker for
// every processor.
#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "kernels/check.h"
#include "kernels/cpu/linear.h"
#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")

namespace quantd {
namespace {

/// Sixteen registers and two a vector of lanes: four rows.
constexpr int kMaxRows = 4;
/// Panels a micro-kernel takes: few rows need more panels in flight to hide latency.
constexpr int PanelsFor(int rows) { return rows == 1 ? 2 : 1; }

#include "kernels/cpu/simd_avx2-inl.h"

/// Bytes 0 and 2 of each dword as two int16; bytes 1 and 3.
inline I EvenInt8(I v) {
  return {_mm256_srai_epi16(_mm256_slli_epi16(v.lo, 8), 8),
          _mm256_srai_epi16(_mm256_slli_epi16(v.hi, 8), 8)};
}
inline I OddInt8(I v) { return {_mm256_srai_epi16(v.lo, 8), _mm256_srai_epi16(v.hi, 8)}; }
inline I MultiplyAddPairs(I a, I b) {
  return {_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi)};
}

// The order of these matters.
// clang-format off
#include "kernels/cpu/linear_scales-inl.h"
#include "kernels/cpu/linear-inl.h"
#include "kernels/cpu/linear_elements-inl.h"
#include "kernels/cpu/linear_int8-inl.h"
#include "kernels/cpu/linear_run-inl.h"
// clang-format on

}  // namespace

const LinearKernels& LinearKernelsAvx2() {
  static constexpr LinearKernels kKernels = {kMaxRows, false,      XLayout::kI16Quads,
                                             Run,      PackFloats, SumColumns};
  return kKernels;
}

}  // namespace quantd

#pragma GCC pop_options

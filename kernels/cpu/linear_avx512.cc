// Linear's micro-kernels for AVX-512 F, BW, DQ, VL. The pragma stands after all headers, so that no
// inline function of theirs is compiled for this instruction set and then picked by the linker for
// every processor.

// GCC 12's own _mm512 headers read an undefined vector on purpose (its bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "kernels/check.h"
#include "kernels/cpu/linear.h"
#include "kernels/quant/codecs.h"
#include "kernels/quant/float_types.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd")

namespace quantd {
namespace {

/// Thirty-two registers: eight rows, each with a block's and a row's accumulator.
constexpr int kMaxRows = 8;
/// Panels a micro-kernel takes: few rows need more panels in flight to hide latency.
constexpr int PanelsFor(int rows) { return rows == 1 ? 4 : rows <= 4 ? 2 : 1; }

#include "kernels/cpu/simd_avx512-inl.h"

/// Bytes 0 and 2 of each dword as two int16; bytes 1 and 3.
inline I EvenInt8(I v) { return _mm512_srai_epi16(_mm512_slli_epi16(v, 8), 8); }
inline I OddInt8(I v) { return _mm512_srai_epi16(v, 8); }
inline I MultiplyAddPairs(I a, I b) { return _mm512_madd_epi16(a, b); }

// The order of these matters.
// clang-format off
#include "kernels/cpu/linear_scales-inl.h"
#include "kernels/cpu/linear-inl.h"
#include "kernels/cpu/linear_elements-inl.h"
#include "kernels/cpu/linear_int8-inl.h"
#include "kernels/cpu/linear_run-inl.h"
// clang-format on

}  // namespace

const LinearKernels& LinearKernelsAvx512() {
  static constexpr LinearKernels kKernels = {kMaxRows, false,      XLayout::kI16Quads,
                                             Run,      PackFloats, SumColumns};
  return kKernels;
}

}  // namespace quantd

#pragma GCC pop_options

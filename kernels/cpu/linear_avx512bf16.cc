// Linear's micro-kernels for AVX-512 with int8 and bf16 dot products. The pragma stands after all
// headers, so that no inline function of theirs is compiled for this instruction set and then
// picked by the linker for every processor.

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

#define QUANTD_INT8_DOT
#define QUANTD_BF16_DOT
#pragma GCC push_options
#pragma GCC target( \
    "avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx512vnni,avx512bf16")

namespace quantd {
namespace {

/// Thirty-two registers: eight rows, each with a block's and a row's accumulator.
constexpr int kMaxRows = 8;
/// Panels a micro-kernel takes: few rows need more panels in flight to hide latency.
constexpr int PanelsFor(int rows) { return rows == 1 ? 4 : 2; }

#include "kernels/cpu/simd_avx512-inl.h"

// The order of these matters.
// clang-format off
#include "kernels/cpu/linear_scales-inl.h"
#include "kernels/cpu/linear-inl.h"
#include "kernels/cpu/linear_elements-inl.h"
#include "kernels/cpu/linear_int8-inl.h"
#include "kernels/cpu/linear_run-inl.h"
// clang-format on

}  // namespace

const LinearKernels& LinearKernelsAvx512Bf16() {
  static constexpr LinearKernels kKernels = {kMaxRows, true,       XLayout::kU8Quads,
                                             Run,      PackFloats, SumColumns};
  return kKernels;
}

}  // namespace quantd

#pragma GCC pop_options

// Highway's configuration for this folder; include before any of its headers. Only the two targets
// the backend chooses between are compiled (and the mandatory scalar one, which the files leave
// empty); a table is picked by CpuIsa instead of by Highway's global choice, so that a backend
// forced to avx2 runs avx2 everywhere.
#pragma once

/// Behind the passes of a file that defines a `Kernels kTable` for each target (under HWY_ONCE):
/// defines KernelsFor(isa), which picks one.
#define QUANTD_EXPORT_TABLE(Kernels)                               \
  const quantd::Kernels& quantd::Kernels##For(CpuIsa isa) {        \
    return isa == CpuIsa::kAvx2 ? N_AVX2::kTable : N_AVX3::kTable; \
  }

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#define HWY_BROKEN_EMU128 1  // the mandatory one is HWY_SCALAR, whatever the compiler

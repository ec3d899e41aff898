// Highway's configuration for this folder; include before any of its headers. Only the two targets
// the backend chooses between are compiled (and the mandatory scalar one, which the files leave
// empty); a table is picked by CpuIsa instead of by Highway's global choice, so that a backend
// forced to avx2 runs avx2 everywhere.
#pragma once

#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

// What the machine can do and what this process takes of it: the yardsticks of engine_bench.
#pragma once

#include <cstdint>

namespace quantd {

/// Bytes a second that `threads` threads read from a buffer far larger than any cache; best of
/// several passes, as anything else on the machine only takes away.
double MeasureReadBandwidth(int threads);

/// Resident bytes of this process now (VmRSS).
int64_t ResidentBytes();
/// Peak resident bytes of this process since ResetPeakResident (VmHWM).
int64_t PeakResidentBytes();
/// Begins a new peak. False where the kernel does not allow it: peaks then only grow.
bool ResetPeakResident();

}  // namespace quantd

// MeasureHostBandwidth: how fast threads read main memory, for rooflines.
#pragma once

namespace quantd {

/// Bytes per second that `threads` threads together read from memory that no cache holds: the best
/// of three passes over 128 MiB a thread. Takes some tenths of a second.
double MeasureHostBandwidth(int threads);

}  // namespace quantd

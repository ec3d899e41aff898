// The twins of ptx.cuh on the CPU. Same names, same fragments (see there); the source place of the
// call comes along for reports.
//
// cp.async copies nothing when it is issued: the destination is poisoned, and filled only when the
// thread waits for the group, so that reading too early and refilling too early are both wrong
// results.
#pragma once

#include <cstdint>
#include <source_location>

#include "kernels/cuda/emulation/device.h"

namespace quantd::cuda_emulated {

uint32_t SharedAddress(const void* p, Site site = Site::current());

/// Sums in f32, k ascending, each term rounded; the tensor core's own order and rounding differ.
void MmaBF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
             Site site = Site::current());
void MmaF16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
            Site site = Site::current());
void MmaInt8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
             Site site = Site::current());

void LdMatrix4(uint32_t (&r)[4], const void* row, Site site = Site::current());
void LdMatrix4Transposed(uint32_t (&r)[4], const void* row, Site site = Site::current());

void CpAsync16(void* shared, const void* global, int source_bytes = 16,
               Site site = Site::current());
void CpAsync4(void* shared, const void* global, int source_bytes = 4, Site site = Site::current());
void CpAsyncCommit();
/// Fills the groups of this thread but the latest `pending`.
void FinishAsyncCopies(size_t pending);
template <int kPending>
void CpAsyncWait() {
  static_assert(kPending >= 0);
  FinishAsyncCopies(kPending);
}

inline float Exp2(float x) {
  const float v = std::exp2(x);
  return v < 0x1p-126f ? 0.0f : v;
}

uint4 LoadStreaming(const void* global, Site site = Site::current());
uint32_t LoadShared(uint32_t address, Site site = Site::current());

}  // namespace quantd::cuda_emulated

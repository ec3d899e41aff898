// Inline PTX, and nothing else: each function has a CPU twin of the same name in
// emulation/ptx_emulated.h, which is where a missing wait or a misaligned address is found.
//
// Fragments (PTX ISA, "Matrix Fragments for mma.m16n8k16" and ".m16n8k32"): with g = lane / 4 and
// t = lane % 4,
// clang-format off
//   A 16-bit  a0 (g, 2t..+1)   a1 (g+8, 2t..+1)   a2 (g, 2t+8..+9)    a3 (g+8, 2t+8..+9)    [16 x 16]
//   B 16-bit  b0 (k 2t..+1, column g)             b1 (k 2t+8..+9, column g)                 [16 x 8]
//   A int8    a0 (g, 4t..+3)   a1 (g+8, 4t..+3)   a2 (g, 4t+16..+19)  a3 (g+8, 4t+16..+19)  [16 x 32]
//   B int8    b0 (k 4t..+3, column g)             b1 (k 4t+16..+19, column g)               [32 x 8]
//   C, D      c0 c1 (g, 2t..+1)                   c2 c3 (g+8, 2t..+1)                       [16 x 8]
// clang-format on
#pragma once

#include <cstdint>

#include "kernels/cuda/target.h"

#ifdef QUANTD_CUDA_EMULATED
#include "kernels/cuda/emulation/ptx_emulated.h"
#else

namespace quantd::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/// d += a * b, bf16 operands, f32 sums.
__device__ __forceinline__ void MmaBF16(float (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// d += a * b, f16 operands, f32 sums.
__device__ __forceinline__ void MmaF16(float (&d)[4], const uint32_t (&a)[4],
                                       const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// d += a * b, int8 operands (m16n8k32), int32 sums.
__device__ __forceinline__ void MmaInt8(int32_t (&d)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8i + j gives the 16-byte aligned
/// address of row j of matrix i; r[i] is matrix i's pair (row lane / 4, columns 2 (lane % 4)..+1).
__device__ __forceinline__ void LdMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}
/// The same, each 8 x 8 matrix transposed.
__device__ __forceinline__ void LdMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row)));
}

/// Starts copying 16 bytes from global to shared memory, both 16-byte aligned; the last
/// 16 - source_bytes bytes become zero (source_bytes 0 reads nothing).
__device__ __forceinline__ void CpAsync16(void* shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(source_bytes)
               : "memory");
}
/// The same for 4 bytes, both 4-byte aligned; source_bytes is 4 or 0.
__device__ __forceinline__ void CpAsync4(void* shared, const void* global, int source_bytes = 4) {
  asm volatile("cp.async.ca.shared.global [%0],[%1],4,%2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(source_bytes)
               : "memory");
}
/// Closes the group of copies this thread has started.
__device__ __forceinline__ void CpAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
/// Waits until at most `kPending` of this thread's latest groups are unfinished. Other threads'
/// copies are visible after __syncthreads().
template <int kPending>
__device__ __forceinline__ void CpAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// 16 bytes that are read once: not kept in L1, fetched 256 bytes at a time into L2.
__device__ __forceinline__ uint4 LoadStreaming(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3},[%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

/// 2^x within 2 ulp, one instruction; 2^0 is 1, results below 2^-126 are 0.
__device__ __forceinline__ float Exp2(float x) {
  float v;
  asm("ex2.approx.ftz.f32 %0,%1;" : "=f"(v) : "f"(x));
  return v;
}

/// A word of shared memory at a 32-bit shared address (SharedAddress of something plus an offset).
__device__ __forceinline__ uint32_t LoadShared(uint32_t address) {
  uint32_t v;
  asm volatile("ld.shared.b32 %0,[%1];" : "=r"(v) : "r"(address));
  return v;
}

}  // namespace quantd::cuda

#endif

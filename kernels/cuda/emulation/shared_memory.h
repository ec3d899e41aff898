// Addresses of shared memory under emulation, and the checks of what PTX reads and writes.
//
// A shared address is 32 bits: kDynamicBase plus the offset into the block's dynamic shared memory,
// or kStaticBase plus the place of a static __shared__ variable within the OS thread's thread-local
// storage. Both bases keep alignments up to 64 bytes (dynamic: 1024).
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace quantd::cuda_emulated {

inline constexpr uint32_t kDynamicBase = 1024;
inline constexpr uint32_t kStaticBase = 0x80000000u;
/// What a block may ask for on compute capability 9.0.
inline constexpr size_t kMaxSharedMemory = 227 * 1024;

/// The shared address of [p, p + bytes). Reports what is not shared memory, or not aligned to
/// `alignment`, as a bug of `what` at `site`.
uint32_t CheckedSharedAddress(const char* what, const void* p, size_t bytes, size_t alignment,
                              std::source_location site);
/// Its inverse, with the same checks.
void* CheckedSharedPointer(const char* what, uint32_t address, size_t bytes, size_t alignment,
                           std::source_location site);

}  // namespace quantd::cuda_emulated

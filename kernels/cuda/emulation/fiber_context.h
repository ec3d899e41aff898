// Stacks of fibers and the switch between them (x86-64, System V): callee-saved registers on the
// stack and a change of the stack pointer. AddressSanitizer is told where there is one.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cuda/emulation/fibers.h"

namespace quantd::cuda_emulated {

/// The stack of the OS thread that runs the grid, to which the last fiber returns.
struct HostContext {
  void* stack_pointer = nullptr;
  void* fake_stack = nullptr;
  const void* stack = nullptr;  // lowest byte and size, learned by AddressSanitizer's calls
  size_t stack_bytes = 0;
};

/// Owns the fibers of an OS thread; they are made when first needed and reused.
class FiberPool {
 public:
  FiberPool() = default;
  ~FiberPool();
  FiberPool(const FiberPool&) = delete;
  FiberPool& operator=(const FiberPool&) = delete;

  /// At least `count` threads with a fiber each that begins (again and again: it must not return)
  /// at `entry`. Addresses stay.
  void Grow(size_t count, void (*entry)());
  Thread& operator[](size_t i) { return *threads_[i]; }

 private:
  std::vector<Thread*> threads_;
  std::vector<void*> regions_;  // kRegionStacks stacks with their guards each
};

void SwitchFromHost(HostContext& host, Thread& to);
void SwitchToHost(Thread& from, HostContext& host);
void SwitchThreads(Thread& from, Thread& to);
/// First thing a fiber does when it runs for the first time.
void FinishFirstSwitch();

}  // namespace quantd::cuda_emulated

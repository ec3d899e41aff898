// One fiber per CUDA thread of a block, one block at a time per OS thread: who runs, who waits
// where.
//
// A thread runs until it waits (block barrier, warp collective) or returns; then the next runnable
// one is switched to directly. A warp is run as far as it gets before another warp is taken, and a
// lane before another lane: the most lopsided schedules the rules allow, so that a missing barrier
// shows. The last arriver of a collective computes it for all lanes, from pointers they left, and
// goes on.
//
// All state is per OS thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <vector>

#include "kernels/cuda/emulation/vector_types.h"

namespace quantd::cuda_emulated {

struct Warp;

/// What cp.async has been asked for and has not done yet, of one thread.
struct AsyncCopies {
  struct Copy {
    void* to;
    const void* from;
    int source_bytes;
    int bytes;  // 4 or 16; zeros behind those of the source
  };
  std::vector<Copy> copies;
  std::vector<size_t> group_ends;  // into copies, of committed groups
  size_t next_copy = 0;
  size_t next_group = 0;

  void Clear();
};

/// A CUDA thread and the fiber it runs on.
struct Thread {
  uint3 index{};        // threadIdx
  uint32_t linear = 0;  // in the block
  uint32_t lane = 0;    // linear % 32
  Warp* warp = nullptr;
  AsyncCopies copies;

  // Where it waits, for the report of a deadlock.
  const char* waits_in = nullptr;
  uint32_t waits_mask = 0;
  std::source_location waits_at;

  void* stack_pointer = nullptr;   // while not running
  void* fake_stack = nullptr;      // AddressSanitizer's
  unsigned char* stack = nullptr;  // lowest usable byte; a guard lies below
};

/// The block now running on this OS thread.
struct BlockState {
  uint3 index{};                    // blockIdx
  dim3 dim{};                       // blockDim
  dim3 grid{};                      // gridDim
  unsigned char* shared = nullptr;  // dynamic shared memory, 1024-byte aligned
  size_t shared_bytes = 0;
  bool preempts = false;  // random order: atomics and fences may switch
};

extern constinit thread_local Thread* t_thread;
extern constinit thread_local BlockState t_block;

/// Something lanes do together. `run` sees what each lane of `lanes` left in `slots`.
struct Collective {
  const char* name;
  void (*run)(void* const* slots, uint32_t lanes);
  bool aligned = false;  // all lanes must be at the same place of the source (.aligned in PTX)
};

/// Waits for the lanes of `mask` that have not returned, then `collective` is run once for all.
void Collect(const Collective& collective, uint32_t mask, void* slot, std::source_location site);

/// What __syncthreads and its three reducing forms give.
struct BarrierVotes {
  int count = 0;
  bool any = false;
  bool all = false;
};
BarrierVotes BlockBarrier(const char* name, bool vote, std::source_location site);

/// In random order, may let another thread run first.
void Preempt();
inline void MayPreempt() {
  if (t_block.preempts) Preempt();
}

/// Reports a bug of the kernel that now runs, with kernel, block and thread, and aborts.
[[noreturn]] __attribute__((format(printf, 1, 2))) void Fatal(const char* format, ...);

/// Runs every thread of every block of a grid, on this OS thread.
void RunGrid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
             const std::function<void()>& thread_body);

/// In which order blocks, warps and lanes run.
struct ScheduleOrder {
  enum class Kind : uint8_t { kForward, kReverse, kRandom };
  Kind kind = Kind::kForward;
  uint64_t seed = 0;
};
/// For launches from now on, in all OS threads. Before the first call: QUANTD_EMULATION_ORDER
/// (forward, reverse or random:SEED), else forward.
void SetScheduleOrder(ScheduleOrder order);
ScheduleOrder GetScheduleOrder();

/// Switches between fibers made by this OS thread so far, for measuring their cost.
uint64_t SwitchCount();

}  // namespace quantd::cuda_emulated

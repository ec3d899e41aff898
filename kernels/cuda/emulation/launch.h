// LAUNCH and DYN_SMEM under emulation; kernels/cuda/launch.cuh has their twins.
//
// The kernel is a template argument, so that naming it in a LAUNCH registers it before main() runs.
// Arguments are copied when the launch is submitted, the grid runs when the host waits for the
// stream.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/cuda/emulation/fibers.h"
#include "kernels/cuda/emulation/kernel_registry.h"

namespace quantd::cuda_emulated {

struct EmulatedStream;

/// Appends host work to a stream (or to the graph it captures): what a library call would launch.
void Enqueue(EmulatedStream* stream, std::function<void()> work);
/// Appends a grid; a shape no device takes becomes FirstError() instead, as a failed launch does.
void EnqueueGrid(EmulatedStream* stream, KernelRecord& kernel, dim3 grid, dim3 block,
                 size_t shared_bytes, std::function<void()> thread_body);

template <auto Kernel>
struct Launcher;

template <typename... P, void (*Kernel)(P...)>
struct Launcher<Kernel> {
  static_assert((... && !std::is_reference_v<P>), "kernel arguments are passed by value");
  static_assert((... && std::is_trivially_copyable_v<P>), "kernel arguments are plain data");

  template <typename... A>
  static void Launch(dim3 grid, dim3 block, size_t shared_bytes, EmulatedStream* stream,
                     A&&... args) {
    static_assert(sizeof...(A) == sizeof...(P), "as many arguments as the kernel takes");
    EnqueueGrid(stream, Registered<Kernel>::record, grid, block, shared_bytes,
                [bound = std::tuple<P...>(static_cast<P>(std::forward<A>(args))...)] {
                  std::apply(Kernel, bound);
                });
  }
};

}  // namespace quantd::cuda_emulated

#define LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                       \
  ::quantd::cuda_emulated::Launcher<kernel>::Launch((grid), (block), (shared_bytes), \
                                                    (stream)__VA_OPT__(, ) __VA_ARGS__)

#define DYN_SMEM(type, name) \
  type* const name = reinterpret_cast<type*>(::quantd::cuda_emulated::t_block.shared)

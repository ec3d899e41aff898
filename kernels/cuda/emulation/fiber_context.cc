#include "kernels/cuda/emulation/fiber_context.h"

#include <signal.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>

#if !defined(__x86_64__)
#error \
    "kernels/cuda/emulation switches fibers on x86-64 only: configure with QUANTD_CUDA_EMULATION=OFF"
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// rdi: where to leave this stack's pointer; rsi: the pointer the other stack was left with.
extern "C" void quantd_emulation_switch(void** from, void* to);
asm(R"(
.text
.globl quantd_emulation_switch
.hidden quantd_emulation_switch
.type quantd_emulation_switch,@function
quantd_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size quantd_emulation_switch, .-quantd_emulation_switch
)");

namespace quantd::cuda_emulated {
namespace {

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStackBytes = 512 << 10;  // its frames are several times as large
#else
constexpr size_t kStackBytes = 256 << 10;
#endif
constexpr size_t kGuardBytes = 64 << 10;  // more than one page: a large frame may skip one
constexpr size_t kRegionStacks = 32;
constexpr size_t kRegionBytes = kRegionStacks * (kGuardBytes + kStackBytes);
// Tops of stacks differ within a page, or all fibers would fight for the same lines of L1.
constexpr size_t kColorStep = 6 * 64, kColorRange = 4096;

#ifdef __SANITIZE_ADDRESS__
// AddressSanitizer has a handler of its own, which says stack-overflow and where.
void InstallOverflowHandler() {}
#else
struct sigaction previous_segv;

void OnSegv(int signal, siginfo_t* info, void* context) {
  const auto* at = static_cast<const unsigned char*>(info->si_addr);
  const Thread* const t = t_thread;
  if (t != nullptr && at < t->stack && at >= t->stack - kGuardBytes) {
    Fatal("stack overflow: local variables of a thread take more than %zu KiB", kStackBytes >> 10);
  }
  if ((previous_segv.sa_flags & SA_SIGINFO) != 0 && previous_segv.sa_sigaction != nullptr) {
    previous_segv.sa_sigaction(signal, info, context);
  } else {
    sigaction(SIGSEGV, &previous_segv, nullptr);  // the access is tried again, and faults for good
  }
}

// A handler cannot run on the stack that overflowed: each OS thread with fibers gets another one.
class SignalStack {
 public:
  SignalStack() : memory_(std::make_unique<unsigned char[]>(kBytes)) {
    stack_t stack{};
    stack.ss_sp = memory_.get();
    stack.ss_size = kBytes;
    sigaltstack(&stack, nullptr);
  }
  ~SignalStack() {
    stack_t stack{};
    stack.ss_flags = SS_DISABLE;
    sigaltstack(&stack, nullptr);
  }

 private:
  static constexpr size_t kBytes = 64 << 10;
  std::unique_ptr<unsigned char[]> memory_;
};

void InstallOverflowHandler() {
  thread_local SignalStack stack;
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = OnSegv;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &previous_segv);
  });
}
#endif

}  // namespace

FiberPool::~FiberPool() {
  for (Thread* t : threads_) delete t;
  for (void* region : regions_) {
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(region, kRegionBytes);
#endif
    munmap(region, kRegionBytes);
  }
}

void FiberPool::Grow(size_t count, void (*entry)()) {
  if (threads_.size() < count) InstallOverflowHandler();
  while (threads_.size() < count) {
    void* const region = mmap(nullptr, kRegionBytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (region == MAP_FAILED) Fatal("no memory for the stacks of %zu threads", count);
    regions_.push_back(region);
    for (size_t i = 0; i < kRegionStacks; ++i) {
      auto* const guard = static_cast<unsigned char*>(region) + i * (kGuardBytes + kStackBytes);
      mprotect(guard, kGuardBytes, PROT_NONE);
      auto* const t = new Thread;
      t->linear = static_cast<uint32_t>(threads_.size());
      t->lane = t->linear % 32;
      t->stack = guard + kGuardBytes;
      auto** top =
          reinterpret_cast<void**>(t->stack + kStackBytes - t->linear * kColorStep % kColorRange);
      *--top = nullptr;  // where entry's caller would be
      *--top = reinterpret_cast<void*>(entry);
      for (int reg = 0; reg < 6; ++reg) *--top = nullptr;
      t->stack_pointer = top;
      threads_.push_back(t);
    }
  }
}

#ifdef __SANITIZE_ADDRESS__
namespace {
// Who left the stack that a fresh fiber was switched from, if that was the host.
thread_local HostContext* left_host = nullptr;
}  // namespace

void SwitchFromHost(HostContext& host, Thread& to) {
  left_host = &host;
  __sanitizer_start_switch_fiber(&host.fake_stack, to.stack, kStackBytes);
  quantd_emulation_switch(&host.stack_pointer, to.stack_pointer);
  __sanitizer_finish_switch_fiber(host.fake_stack, nullptr, nullptr);
}

namespace {
void FinishSwitchInto(void* fake_stack) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (left_host != nullptr) {
    left_host->stack = bottom;
    left_host->stack_bytes = bytes;
    left_host = nullptr;
  }
}
}  // namespace

void SwitchToHost(Thread& from, HostContext& host) {
  __sanitizer_start_switch_fiber(&from.fake_stack, host.stack, host.stack_bytes);
  quantd_emulation_switch(&from.stack_pointer, host.stack_pointer);
  FinishSwitchInto(from.fake_stack);
}

void SwitchThreads(Thread& from, Thread& to) {
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, kStackBytes);
  quantd_emulation_switch(&from.stack_pointer, to.stack_pointer);
  FinishSwitchInto(from.fake_stack);
}

void FinishFirstSwitch() { FinishSwitchInto(nullptr); }
#else
void SwitchFromHost(HostContext& host, Thread& to) {
  quantd_emulation_switch(&host.stack_pointer, to.stack_pointer);
}
void SwitchToHost(Thread& from, HostContext& host) {
  quantd_emulation_switch(&from.stack_pointer, host.stack_pointer);
}
void SwitchThreads(Thread& from, Thread& to) {
  quantd_emulation_switch(&from.stack_pointer, to.stack_pointer);
}
void FinishFirstSwitch() {}
#endif

}  // namespace quantd::cuda_emulated

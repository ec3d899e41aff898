#include "kernels/cuda/emulation/fibers.h"

#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "kernels/cuda/emulation/fiber_context.h"
#include "kernels/cuda/emulation/shared_memory.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace quantd::cuda_emulated {

/// The lanes of `mask` that have arrived at a collective.
struct Group {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const Collective* collective = nullptr;
  std::source_location site;
};

struct Warp {
  uint32_t index = 0;
  uint32_t live = 0;        // lanes that have not returned
  uint32_t ready = 0;       // lanes that could run now, but the running one
  uint32_t at_barrier = 0;  // lanes in BlockBarrier
  std::source_location barrier_site;
  int num_groups = 0;
  std::array<Group, 32> groups;   // incomplete ones; a lane waits in one at a time
  std::array<void*, 32> slots{};  // what each lane left for its collective
};

constinit thread_local Thread* t_thread = nullptr;
constinit thread_local BlockState t_block;

namespace {

ScheduleOrder OrderOfEnvironment() {
  const char* const text = std::getenv("QUANTD_EMULATION_ORDER");
  const std::string_view order = text == nullptr ? "forward" : text;
  if (order == "forward") return {};
  if (order == "reverse") return {ScheduleOrder::Kind::kReverse, 0};
  constexpr std::string_view kRandom = "random:";
  ScheduleOrder result{ScheduleOrder::Kind::kRandom, 0};
  if (order.starts_with(kRandom)) {
    const char* const end = order.data() + order.size();
    const auto [last, error] = std::from_chars(order.data() + kRandom.size(), end, result.seed);
    if (error == std::errc() && last == end) return result;
  }
  Fatal("QUANTD_EMULATION_ORDER=%s is none of forward, reverse, random:SEED", text);
}

struct SharedOrder {
  std::mutex mutex;
  ScheduleOrder order = OrderOfEnvironment();
  std::atomic<uint64_t> version = 1;
};
SharedOrder& GetSharedOrder() {
  static SharedOrder shared;
  return shared;
}

/// SplitMix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  /// A set bit of `bits`, which has one.
  int BitOf(uint32_t bits) {
    const int turn = static_cast<int>(Next() >> 59);
    return (std::countr_zero(std::rotr(bits, turn)) + turn) & 31;
  }

 private:
  uint64_t state_;
};

constexpr unsigned char kGuardByte = 0xFB, kPoisonByte = 0xCD;
constexpr size_t kSharedGuard = 1024;  // also the alignment of dynamic shared memory

/// All emulation state of an OS thread.
class Machine {
 public:
  static Machine& Get() {
    thread_local Machine machine;
    current = &machine;
    return machine;
  }
  static constinit thread_local Machine* current;
  ~Machine() { current = nullptr; }

  void Run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
           const std::function<void()>& thread_body);

  void Collect(const Collective& collective, uint32_t mask, void* slot, std::source_location site);
  BarrierVotes Barrier(const char* name, bool vote, std::source_location site);
  void Preempt();
  void PrintPlace() const;
  uint64_t switches() const { return switches_; }

 private:
  static void Entry();
  void TakeOrder();
  void RunBlock(uint64_t linear_block);
  void PrepareShared(size_t bytes);
  void CheckSharedGuards(size_t bytes) const;
  void CompleteGroup(Warp& warp, int g);
  void CompleteBarrier();
  void LeaveWarp();
  void MakeReady(Warp& warp, uint32_t lanes) {
    if (lanes == 0) return;
    warp.ready |= lanes;
    ready_warps_ |= 1u << warp.index;
  }
  Thread* PickNext();
  void Wait(const char* in, uint32_t mask, std::source_location site);
  void SwitchAway(Thread& from);
  [[noreturn]] void ReportDeadlock() const;

  const char* kernel_ = "";
  const std::function<void()>* body_ = nullptr;
  FiberPool fibers_;
  HostContext host_;
  std::array<Warp, 32> warps_;
  uint32_t num_threads_ = 0;
  uint32_t live_ = 0;         // threads that have not returned
  uint32_t ready_warps_ = 0;  // warps with a ready lane
  uint32_t warp_ = 0;         // the one that ran last

  uint32_t barrier_arrived_ = 0;
  int barrier_count_ = 0;
  BarrierVotes barrier_votes_;  // of the barrier completed last

  ScheduleOrder order_;
  uint64_t order_version_ = 0;
  Random random_{0};
  uint64_t switches_ = 0;

  struct FreeDeleter {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<unsigned char, FreeDeleter> shared_;
};

constinit thread_local Machine* Machine::current = nullptr;

void Machine::Entry() {
  FinishFirstSwitch();
  Machine& m = *current;
  for (;;) {
    (*m.body_)();
    m.LeaveWarp();
    m.SwitchAway(*t_thread);
  }
}

void Machine::TakeOrder() {
  SharedOrder& shared = GetSharedOrder();
  if (order_version_ == shared.version) return;
  const std::lock_guard lock(shared.mutex);
  order_version_ = shared.version;
  order_ = shared.order;
  random_ = Random(order_.seed);
}

void Machine::PrepareShared(size_t bytes) {
  if (shared_ == nullptr) {
    const size_t size = kSharedGuard + kMaxSharedMemory + kSharedGuard;
    shared_.reset(static_cast<unsigned char*>(std::aligned_alloc(kSharedGuard, size)));
    std::memset(shared_.get(), kGuardByte, size);
  }
  t_block.shared = shared_.get() + kSharedGuard;
  t_block.shared_bytes = bytes;
  std::memset(t_block.shared + bytes, kGuardByte, kSharedGuard);
#ifdef __SANITIZE_ADDRESS__
  ASAN_POISON_MEMORY_REGION(shared_.get(), kSharedGuard);
  ASAN_POISON_MEMORY_REGION(t_block.shared + bytes, kMaxSharedMemory + kSharedGuard - bytes);
#endif
}

void Machine::CheckSharedGuards(size_t bytes) const {
#ifdef __SANITIZE_ADDRESS__
  (void)bytes;
#else
  for (size_t i = 0; i < kSharedGuard; ++i) {
    if (t_block.shared[bytes + i] != kGuardByte) {
      Fatal("wrote past its %zu bytes of dynamic shared memory, at offset %zu", bytes, bytes + i);
    }
    if (shared_.get()[i] != kGuardByte) {
      Fatal("wrote before its dynamic shared memory, at offset -%zu", kSharedGuard - i);
    }
  }
#endif
}

void Machine::Run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
                  const std::function<void()>& thread_body) {
  if (t_thread != nullptr) Fatal("a kernel launches a kernel");
  TakeOrder();
  kernel_ = kernel;
  body_ = &thread_body;
  num_threads_ = block.x * block.y * block.z;
  fibers_.Grow(num_threads_, Entry);
  t_block.dim = block;
  t_block.grid = grid;
  t_block.preempts = order_.kind == ScheduleOrder::Kind::kRandom;
  PrepareShared(shared_bytes);
  for (uint32_t i = 0; i < num_threads_; ++i) {
    fibers_[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
  }

  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  switch (order_.kind) {
    case ScheduleOrder::Kind::kForward:
      for (uint64_t i = 0; i < blocks; ++i) RunBlock(i);
      break;
    case ScheduleOrder::Kind::kReverse:
      for (uint64_t i = blocks; i-- > 0;) RunBlock(i);
      break;
    case ScheduleOrder::Kind::kRandom: {
      std::vector<uint64_t> order(blocks);
      std::iota(order.begin(), order.end(), uint64_t{0});
      for (uint64_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random_.Next() % i]);
      for (uint64_t i : order) RunBlock(i);
    }
  }
#ifdef __SANITIZE_ADDRESS__
  ASAN_UNPOISON_MEMORY_REGION(shared_.get(), kSharedGuard + kMaxSharedMemory + kSharedGuard);
#endif
  kernel_ = "";
}

void Machine::RunBlock(uint64_t linear_block) {
  const dim3 grid = t_block.grid;
  t_block.index = {static_cast<unsigned>(linear_block % grid.x),
                   static_cast<unsigned>(linear_block / grid.x % grid.y),
                   static_cast<unsigned>(linear_block / (uint64_t{grid.x} * grid.y))};
  std::memset(t_block.shared, kPoisonByte, t_block.shared_bytes);
  live_ = num_threads_;
  barrier_arrived_ = 0;
  barrier_count_ = 0;
  ready_warps_ = 0;
  for (uint32_t w = 0; w * 32 < num_threads_; ++w) {
    Warp& warp = warps_[w];
    const uint32_t lanes = num_threads_ - w * 32;
    warp.index = w;
    warp.live = lanes >= 32 ? ~0u : (1u << lanes) - 1;
    warp.ready = warp.at_barrier = 0;
    warp.num_groups = 0;
    MakeReady(warp, warp.live);
  }
  for (uint32_t i = 0; i < num_threads_; ++i) {
    fibers_[i].warp = &warps_[i / 32];
    fibers_[i].waits_in = nullptr;
    fibers_[i].copies.Clear();
  }
  warp_ = order_.kind == ScheduleOrder::Kind::kReverse ? (num_threads_ - 1) / 32 : 0;

  Thread* const first = PickNext();
  ++switches_;
  t_thread = first;
  SwitchFromHost(host_, *first);
  t_thread = nullptr;
  if (live_ != 0) ReportDeadlock();
  CheckSharedGuards(t_block.shared_bytes);
}

Thread* Machine::PickNext() {
  if (ready_warps_ == 0) return nullptr;
  int lane = 0;
  switch (order_.kind) {
    case ScheduleOrder::Kind::kForward:
      if ((ready_warps_ >> warp_ & 1) == 0) warp_ = std::countr_zero(ready_warps_);
      lane = std::countr_zero(warps_[warp_].ready);
      break;
    case ScheduleOrder::Kind::kReverse:
      if ((ready_warps_ >> warp_ & 1) == 0) warp_ = 31 - std::countl_zero(ready_warps_);
      lane = 31 - std::countl_zero(warps_[warp_].ready);
      break;
    case ScheduleOrder::Kind::kRandom:
      warp_ = static_cast<uint32_t>(random_.BitOf(ready_warps_));
      lane = random_.BitOf(warps_[warp_].ready);
  }
  Warp& warp = warps_[warp_];
  warp.ready &= ~(1u << lane);
  if (warp.ready == 0) ready_warps_ &= ~(1u << warp_);
  return &fibers_[warp_ * 32 + static_cast<uint32_t>(lane)];
}

void Machine::SwitchAway(Thread& from) {
  Thread* const next = PickNext();
  if (next == &from) return;
  ++switches_;
  if (next == nullptr) {
    SwitchToHost(from, host_);
  } else {
    t_thread = next;
    SwitchThreads(from, *next);
  }
}

void Machine::Wait(const char* in, uint32_t mask, std::source_location site) {
  Thread& self = *t_thread;
  self.waits_in = in;
  self.waits_mask = mask;
  self.waits_at = site;
  SwitchAway(self);
  self.waits_in = nullptr;
}

void Machine::Preempt() {
  Thread& self = *t_thread;
  MakeReady(*self.warp, 1u << self.lane);
  SwitchAway(self);
}

void Machine::Collect(const Collective& collective, uint32_t mask, void* slot,
                      std::source_location site) {
  Thread& self = *t_thread;
  Warp& warp = *self.warp;
  const uint32_t bit = 1u << self.lane;
  if ((mask & bit) == 0) {
    Fatal("%s(mask 0x%08x) at %s:%u by lane %u, which is not in the mask", collective.name, mask,
          site.file_name(), site.line(), self.lane);
  }
  int g = 0;
  while (g < warp.num_groups && warp.groups[g].mask != mask) ++g;
  Group& group = warp.groups[g];
  if (g == warp.num_groups) {
    group = {mask, 0, &collective, site};
    ++warp.num_groups;
  } else if (group.collective != &collective) {
    Fatal("lane %u is in %s at %s:%u while others of mask 0x%08x are in %s at %s:%u", self.lane,
          collective.name, site.file_name(), site.line(), mask, group.collective->name,
          group.site.file_name(), group.site.line());
  } else if (collective.aligned && group.site.line() != site.line()) {
    Fatal("%s needs all lanes at one place: lane %u is at %s:%u, others at %s:%u", collective.name,
          self.lane, site.file_name(), site.line(), group.site.file_name(), group.site.line());
  }
  group.arrived |= bit;
  warp.slots[self.lane] = slot;
  if (group.arrived == (mask & warp.live)) {
    MakeReady(warp, group.arrived & ~bit);
    CompleteGroup(warp, g);
    if (t_block.preempts) Preempt();
  } else {
    Wait(collective.name, mask, site);
  }
}

void Machine::CompleteGroup(Warp& warp, int g) {
  const Group group = warp.groups[g];
  warp.groups[g] = warp.groups[--warp.num_groups];
  group.collective->run(warp.slots.data(), group.arrived);
}

BarrierVotes Machine::Barrier(const char* name, bool vote, std::source_location site) {
  Thread& self = *t_thread;
  Warp& warp = *self.warp;
  if (warp.at_barrier == 0) {
    warp.barrier_site = site;
  } else if (warp.barrier_site.line() != site.line()) {
    Fatal("%s by part of a warp at %s:%u while the rest waits at %s:%u", name, site.file_name(),
          site.line(), warp.barrier_site.file_name(), warp.barrier_site.line());
  }
  warp.at_barrier |= 1u << self.lane;
  ++barrier_arrived_;
  barrier_count_ += vote;
  if (barrier_arrived_ == live_) {
    CompleteBarrier();
    if (order_.kind == ScheduleOrder::Kind::kRandom) {
      SwitchAway(self);
    } else {
      // Already running: not among those to be picked.
      warp.ready &= ~(1u << self.lane);
      if (warp.ready == 0) ready_warps_ &= ~(1u << warp.index);
    }
  } else {
    Wait(name, ~0u, site);
  }
  return barrier_votes_;
}

void Machine::CompleteBarrier() {
  barrier_votes_ = {barrier_count_, barrier_count_ != 0,
                    barrier_count_ == static_cast<int>(barrier_arrived_)};
  barrier_arrived_ = 0;
  barrier_count_ = 0;
  for (uint32_t w = 0; w * 32 < num_threads_; ++w) {
    MakeReady(warps_[w], std::exchange(warps_[w].at_barrier, 0u));
  }
}

// A thread returns: those who waited for it alone go on, as on the device.
void Machine::LeaveWarp() {
  Warp& warp = *t_thread->warp;
  warp.live &= ~(1u << t_thread->lane);
  --live_;
  for (int g = warp.num_groups; g-- > 0;) {
    const Group& group = warp.groups[g];
    if (group.arrived == (group.mask & warp.live)) {
      MakeReady(warp, group.arrived);
      CompleteGroup(warp, g);
    }
  }
  if (barrier_arrived_ != 0 && barrier_arrived_ == live_) CompleteBarrier();
}

void Machine::PrintPlace() const {
  if (kernel_[0] == '\0') return;
  const uint3 b = t_block.index;
  std::fprintf(stderr, "kernel %s, block (%u, %u, %u)", kernel_, b.x, b.y, b.z);
  if (t_thread != nullptr) {
    const uint3 t = t_thread->index;
    std::fprintf(stderr, ", thread (%u, %u, %u)", t.x, t.y, t.z);
  }
  std::fprintf(stderr, ": ");
}

void Machine::ReportDeadlock() const {
  using Key = std::tuple<std::string, unsigned, std::string, uint32_t>;
  std::map<Key, std::string> waiting;  // -> "0-30, 64"
  std::map<Key, std::pair<uint32_t, uint32_t>> open;
  const auto flush = [&](const Key& key) {
    const auto [from, to] = open[key];
    std::string& list = waiting[key];
    if (!list.empty()) list += ", ";
    list += std::to_string(from);
    if (to > from) list += "-" + std::to_string(to);
  };
  for (uint32_t i = 0; i < num_threads_; ++i) {
    const Thread& t = const_cast<FiberPool&>(fibers_)[i];
    if (t.waits_in == nullptr) continue;
    const Key key{t.waits_at.file_name(), t.waits_at.line(), t.waits_in, t.waits_mask};
    const auto it = open.find(key);
    if (it != open.end() && it->second.second + 1 == i) {
      it->second.second = i;
    } else {
      if (it != open.end()) flush(key);
      open[key] = {i, i};
    }
  }
  for (const auto& entry : open) flush(entry.first);
  std::string report;
  for (const auto& [key, threads] : waiting) {
    const auto& [file, line, in, mask] = key;
    char mask_text[32];
    std::snprintf(mask_text, sizeof mask_text, mask == ~0u ? "" : "(mask 0x%08x)", mask);
    report += "\n  threads " + threads + " wait in " + in + mask_text + " at " + file + ":" +
              std::to_string(line);
  }
  Fatal("deadlock: %u of %u threads wait and none can run%s", live_, num_threads_, report.c_str());
}

}  // namespace

void AsyncCopies::Clear() {
  copies.clear();
  group_ends.clear();
  next_copy = next_group = 0;
}

void Collect(const Collective& collective, uint32_t mask, void* slot, std::source_location site) {
  Machine::current->Collect(collective, mask, slot, site);
}
BarrierVotes BlockBarrier(const char* name, bool vote, std::source_location site) {
  return Machine::current->Barrier(name, vote, site);
}
void Preempt() { Machine::current->Preempt(); }

void Fatal(const char* format, ...) {
  std::fprintf(stderr, "cuda emulation: ");
  if (Machine::current != nullptr) Machine::current->PrintPlace();
  va_list args;
  va_start(args, format);
  std::vfprintf(stderr, format, args);
  va_end(args);
  std::fprintf(stderr, "\n");
  std::abort();
}

void RunGrid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
             const std::function<void()>& thread_body) {
  Machine::Get().Run(kernel, grid, block, shared_bytes, thread_body);
}

void SetScheduleOrder(ScheduleOrder order) {
  SharedOrder& shared = GetSharedOrder();
  const std::lock_guard lock(shared.mutex);
  shared.order = order;
  ++shared.version;
}
ScheduleOrder GetScheduleOrder() {
  SharedOrder& shared = GetSharedOrder();
  const std::lock_guard lock(shared.mutex);
  return shared.order;
}

uint64_t SwitchCount() { return Machine::Get().switches(); }

}  // namespace quantd::cuda_emulated

// MemoryAccount: bytes taken now, and at most, by component. Every Buffer books itself here, so
// that what a model, its KV cache and its workspace really take can be compared with the plan and
// exported. Thread-safe.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace quantd {

enum class MemoryComponent : uint8_t {
  kWeights,    // codes of quantized linears, and plain linears
  kScales,     // scales, zeros, nested statistics, per-row corrections
  kEmbedding,  // token embedding (and a tied head)
  kHead,       // output head when it is not tied
  kNorms,      // norm weights, biases, rope tables
  kKvCache,
  kActivations,  // step buffers of the model
  kWorkspace,    // scratch of kernels, step arrays, logits
};
inline constexpr int kNumMemoryComponents = 8;

constexpr std::string_view ToString(MemoryComponent c) {
  constexpr std::string_view kNames[kNumMemoryComponents] = {
      "weights", "scales", "embedding", "head", "norms", "kv_cache", "activations", "workspace"};
  return kNames[static_cast<int>(c)];
}

class MemoryAccount {
 public:
  void Add(MemoryComponent c, int64_t bytes) {
    now_[static_cast<size_t>(c)].fetch_add(bytes, std::memory_order_relaxed);
    const int64_t total = total_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    int64_t peak = peak_.load(std::memory_order_relaxed);
    while (total > peak && !peak_.compare_exchange_weak(peak, total, std::memory_order_relaxed)) {
    }
  }
  int64_t Bytes(MemoryComponent c) const {
    return now_[static_cast<size_t>(c)].load(std::memory_order_relaxed);
  }
  int64_t Total() const { return total_.load(std::memory_order_relaxed); }
  int64_t Peak() const { return peak_.load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<int64_t>, kNumMemoryComponents> now_{};
  std::atomic<int64_t> total_{0};
  std::atomic<int64_t> peak_{0};
};

}  // namespace quantd

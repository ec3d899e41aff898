// Test helper: a loaded model with a KV cache and one sequence, fed by plain token lists.
// Header-only.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/load.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ref/ref_backend.h"

namespace quantd::testing_support {

/// A device that takes the place of all backends below where a program has one (quantd_gpu): under
/// `name`, and under name + "_invariant" in that determinism. To be set before InitGoogleTest.
struct DeviceUnderTest {
  std::string name;
  std::function<std::unique_ptr<Backend>(Determinism)> create;
};
inline DeviceUnderTest& TheDeviceUnderTest() {
  static DeviceUnderTest device;
  return device;
}

/// "ref", and "cpu_<isa>" for each instruction set of this machine.
inline std::vector<std::string> HostBackends() {
  if (!TheDeviceUnderTest().name.empty()) return {};
  std::vector<std::string> names = {"ref"};
  for (const CpuIsa isa : SupportedIsas()) names.push_back("cpu_" + std::string(ToString(isa)));
  return names;
}

/// `cuda` under emulation, in both determinisms; none where it is not built in.
inline std::vector<std::string> EmulatedBackends() {
  if (const std::string& name = TheDeviceUnderTest().name; !name.empty()) {
    return {name, name + "_invariant"};
  }
#ifdef QUANTD_HAS_CUDA_EMULATION
  return {"cuda_emulated", "cuda_emulated_invariant"};
#else
  return {};
#endif
}

inline std::unique_ptr<Backend> MakeBackend(const std::string& name) {
  if (const DeviceUnderTest& device = TheDeviceUnderTest(); !device.name.empty()) {
    return device.create(name == device.name ? Determinism::kDefault
                                             : Determinism::kBatchInvariant);
  }
  if (name == "ref") return CreateRefBackend();
#ifdef QUANTD_HAS_CUDA_EMULATION
  for (const Determinism d : {Determinism::kDefault, Determinism::kBatchInvariant}) {
    if (name != EmulatedBackends()[static_cast<size_t>(d)]) continue;
    auto backend = cuda_emulated::CreateBackend({.determinism = d});
    EXPECT_TRUE(backend.ok()) << backend.status();
    return backend.ok() ? std::move(*backend) : nullptr;
  }
#endif
  for (const CpuIsa isa : SupportedIsas()) {
    if (name != "cpu_" + std::string(ToString(isa))) continue;
    CpuBackendOptions options;
    options.num_threads = 2;
    options.isa = isa;
    auto backend = CreateCpuBackend(options);
    EXPECT_TRUE(backend.ok()) << backend.status();
    return backend.ok() ? std::move(*backend) : nullptr;
  }
  ADD_FAILURE() << "no backend " << name;
  return nullptr;
}

class ModelRunner {
 public:
  static constexpr int32_t kBlockSize = 16;

  ModelRunner(Backend& backend, LoadedModel loaded, int32_t max_tokens = 128)
      : backend_(backend), loaded_(std::move(loaded)) {
    const int32_t blocks = (max_tokens + kBlockSize - 1) / kBlockSize;
    auto kv = KvCache::Create(backend, loaded_.spec, loaded_.kv_dtype, blocks + 1, kBlockSize);
    EXPECT_TRUE(kv.ok()) << kv.status();
    kv_ = std::move(*kv);
    // Blocks in descending order: a table that is read as the identity would be noticed.
    for (int32_t i = blocks; i >= 1; --i) table_.push_back(i);
  }

  const LoadedModel& loaded() const { return loaded_; }
  int32_t length() const { return length_; }
  void Reset() { length_ = 0; }

  /// Appends `tokens` to the sequence; logits [rows, vocab] of all of them, or of the last alone.
  std::vector<float> Forward(const std::vector<int32_t>& tokens, bool last_only = false,
                             const LinearObserver* observer = nullptr) {
    const int32_t rows = static_cast<int32_t>(tokens.size());
    std::vector<int32_t> positions, slots, sequences(tokens.size(), 0), logit_rows;
    for (int32_t i = 0; i < rows; ++i) {
      const int32_t p = length_ + i;
      positions.push_back(p);
      slots.push_back(table_[static_cast<size_t>(p / kBlockSize)] * kBlockSize + p % kBlockSize);
      if (!last_only || i == rows - 1) logit_rows.push_back(i);
    }
    std::vector<Buffer> arrays;
    const auto device = [&](const std::vector<int32_t>& values) {
      arrays.push_back(Allocate(values.size() * sizeof(int32_t)));
      backend_.Upload(values.data(), values.size() * sizeof(int32_t), arrays.back().data());
      return std::span<const int32_t>(arrays.back().as<int32_t>(), values.size());
    };
    Batch batch;
    batch.token_ids = device(tokens);
    batch.logit_rows = device(logit_rows);
    batch.attention.positions = device(positions);
    batch.attention.slots = device(slots);
    batch.attention.seq_of_row = device(sequences);
    batch.attention.block_tables = device(table_);
    batch.attention.num_seqs = 1;
    batch.attention.max_blocks = static_cast<int32_t>(table_.size());
    std::vector<float> logits(logit_rows.size() * static_cast<size_t>(loaded_.spec.vocab_size));
    const Buffer on_device = Allocate(logits.size() * sizeof(float));
    loaded_.model->Forward(
        batch, *kv_,
        TensorView(DType::kF32, on_device.data(), static_cast<int64_t>(logit_rows.size()),
                   loaded_.spec.vocab_size),
        observer);
    const absl::Status status = backend_.Synchronize();
    EXPECT_TRUE(status.ok()) << status;
    backend_.Download(on_device.data(), logits.size() * sizeof(float), logits.data());
    length_ += rows;
    return logits;
  }

 private:
  Buffer Allocate(size_t bytes) {
    auto buffer = backend_.Allocate(bytes, MemoryComponent::kWorkspace);
    EXPECT_TRUE(buffer.ok()) << buffer.status();
    return std::move(*buffer);
  }

  Backend& backend_;
  LoadedModel loaded_;
  std::unique_ptr<KvCache> kv_;
  std::vector<int32_t> table_;
  int32_t length_ = 0;
};

inline int32_t ArgMax(const std::vector<float>& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

/// sqrt(mean((a - b)^2)).
inline double Rms(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

}  // namespace quantd::testing_support

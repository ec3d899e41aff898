// CudaSampler: Backend::Sample without waiting. Parameters go up and results come down in the
// stream; the caller's spans are filled when the ticket of the step is waited for.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/scratch.h"
#include "kernels/sampling.h"

namespace quantd::QUANTD_CUDA_NS {

class CudaSampler {
 public:
  explicit CudaSampler(DeviceContext& context) : context_(context) {}
  /// The stream is idle.
  ~CudaSampler();
  CudaSampler(const CudaSampler&) = delete;
  CudaSampler& operator=(const CudaSampler&) = delete;

  /// `results` belong to step `ticket`. At least one row.
  void Sample(Matrix logits, std::span<const SampleParams> params, std::span<int32_t> sampled,
              std::span<SampleResult> results, uint64_t ticket);
  /// Fills the results of steps up to `ticket`, which have been waited for.
  void Collect(uint64_t ticket);
  /// Forgets all results that were not collected.
  void Drop();

 private:
  struct Pinned {
    std::byte* data = nullptr;
    size_t bytes = 0;
  };
  struct Pending {
    uint64_t ticket = 0;
    Pinned pinned;
    std::span<SampleResult> results;
    size_t top_offset = 0;  // of the lists in `pinned`; 0: there are none
  };

  // A pinned block of at least `bytes`, or one without memory.
  Pinned TakePinned(size_t bytes);
  void Upload(std::span<const SampleParams> params);
  bool Grow(Buffer& buffer, size_t bytes);

  DeviceContext& context_;
  Buffer params_;   // DeviceSampleParams [rows], then the lists of all rows
  Buffer results_;  // DeviceSampleResult [rows], then DeviceTokenLogprob [rows, kMaxTopLogprobs]
  std::vector<std::byte> host_params_;
  DeviceSampleLists lists_;  // in params_
  std::deque<Pending> pending_;
  std::vector<Pinned> free_;
};

}  // namespace quantd::QUANTD_CUDA_NS

// Scratch: see scratch.h.
#include "kernels/cuda/scratch.h"

#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {

bool Scratch::Grow(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() >= bytes) return true;
  if (context_.capturing) {
    context_.capture_failed = true;
    return false;
  }
  context_.before_growth();
  buffer = Buffer();  // first, so that both need not fit
  auto grown = context_.arena->Allocate(bytes, MemoryComponent::kWorkspace);
  if (!grown.ok()) {
    context_.Note(grown.status());
    return false;
  }
  buffer = *std::move(grown);
  return true;
}

bool Scratch::Reserve(size_t bytes, int32_t counters, Workspace* workspace) {
  if (!Grow(data_, bytes) || !Grow(counters_, static_cast<size_t>(counters) * sizeof(int32_t))) {
    return false;
  }
  *workspace = {data_.data(), data_.bytes(), counters_.as<int32_t>(),
                static_cast<int32_t>(counters_.bytes() / sizeof(int32_t))};
  return true;
}

}  // namespace quantd::QUANTD_CUDA_NS

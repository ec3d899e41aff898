// CudaSampler: see cuda_sampler.h.
#include "kernels/cuda/cuda_sampler.h"

#include <algorithm>
#include <cstring>

#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {

CudaSampler::~CudaSampler() {
  Drop();
  for (const Pinned& pinned : free_) PinnedFree(pinned.data);
}

bool CudaSampler::Grow(Buffer& buffer, size_t bytes) {
  if (buffer.bytes() >= bytes) return true;
  buffer = Buffer();
  auto grown = context_.arena->Allocate(bytes, MemoryComponent::kWorkspace);
  if (!grown.ok()) {
    context_.Note(grown.status());
    return false;
  }
  buffer = *std::move(grown);
  return true;
}

CudaSampler::Pinned CudaSampler::TakePinned(size_t bytes) {
  const auto fits = std::find_if(free_.begin(), free_.end(),
                                 [bytes](const Pinned& p) { return p.bytes >= bytes; });
  if (fits != free_.end()) {
    const Pinned pinned = *fits;
    free_.erase(fits);
    return pinned;
  }
  // Nothing refers to what lies in the list, so what was too small goes.
  for (const Pinned& pinned : free_) PinnedFree(pinned.data);
  free_.clear();
  const Pinned pinned = {static_cast<std::byte*>(PinnedAllocate(bytes)), bytes};
  if (pinned.data == nullptr) {
    context_.Note(ResourceExhausted("no pinned host memory for {} bytes of samples", bytes));
  }
  return pinned;
}

void CudaSampler::Upload(std::span<const SampleParams> params) {
  size_t num_banned = 0, num_mask = 0, num_edits = 0;
  for (const SampleParams& p : params) {
    num_banned += p.banned_ids.size();
    num_mask += p.allowed_mask.size();
    num_edits += p.edits.size();
  }
  const size_t banned_offset = AlignUp(params.size() * sizeof(DeviceSampleParams));
  const size_t mask_offset = banned_offset + AlignUp(num_banned * sizeof(int32_t));
  const size_t edits_offset = mask_offset + AlignUp(num_mask * sizeof(uint32_t));
  host_params_.resize(edits_offset + num_edits * sizeof(DeviceLogitEdit));
  if (!Grow(params_, AlignUp(host_params_.size()))) return;
  std::byte* const host = host_params_.data();
  auto* const to = reinterpret_cast<DeviceSampleParams*>(host);
  auto* const banned = reinterpret_cast<int32_t*>(host + banned_offset);
  auto* const masks = reinterpret_cast<uint32_t*>(host + mask_offset);
  auto* const edits = reinterpret_cast<DeviceLogitEdit*>(host + edits_offset);
  int32_t first_banned = 0, first_mask = 0, first_edit = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    const SampleParams& p = params[i];
    to[i] = {.temperature = p.temperature,
             .top_p = p.top_p,
             .min_p = p.min_p,
             .uniform = UniformOf(p.seed, p.sequence_index, p.position),
             .top_k = p.top_k,
             .num_logprobs = p.num_logprobs,
             .repetition_penalty = p.repetition_penalty,
             .forced_id = p.forced_id,
             .first_banned = first_banned,
             .num_banned = static_cast<int32_t>(p.banned_ids.size()),
             .first_mask = p.allowed_mask.empty() ? -1 : first_mask,
             .first_edit = first_edit,
             .num_edits = static_cast<int32_t>(p.edits.size())};
    std::copy(p.banned_ids.begin(), p.banned_ids.end(), banned + first_banned);
    std::copy(p.allowed_mask.begin(), p.allowed_mask.end(), masks + first_mask);
    for (const LogitEdit& e : p.edits) {
      edits[first_edit++] = {e.token_id, e.bias, e.penalty, e.repeated, 0.0f};
    }
    first_banned += static_cast<int32_t>(p.banned_ids.size());
    first_mask += static_cast<int32_t>(p.allowed_mask.size());
  }
  auto* const device = static_cast<std::byte*>(params_.data());
  lists_ = {reinterpret_cast<const int32_t*>(device + banned_offset),
            reinterpret_cast<const uint32_t*>(device + mask_offset),
            reinterpret_cast<DeviceLogitEdit*>(device + edits_offset)};
  context_.staging->Upload(host, host_params_.size(), device);
}

void CudaSampler::Sample(Matrix logits, std::span<const SampleParams> params,
                         std::span<int32_t> sampled, std::span<SampleResult> results,
                         uint64_t ticket) {
  const size_t rows = params.size();
  bool lists = false;
  for (const SampleParams& p : params) {
    QUANTD_CHECK(p.num_logprobs >= 0 && p.num_logprobs <= kMaxTopLogprobs,
                 "{} logprobs, allowed: 0 to {}", p.num_logprobs, kMaxTopLogprobs);
    lists |= p.num_logprobs > 0;
  }
  const size_t top_offset = AlignUp(rows * sizeof(DeviceSampleResult));
  const size_t all = top_offset + rows * kMaxTopLogprobs * sizeof(DeviceTokenLogprob);
  const size_t wanted = lists ? all : rows * sizeof(DeviceSampleResult);
  Upload(params);
  if (params_.data() == nullptr || !Grow(results_, all)) return;
  const Pinned pinned = TakePinned(wanted);
  if (pinned.data == nullptr) return;

  auto* const device = static_cast<std::byte*>(results_.data());
  quantd::QUANTD_CUDA_NS::Sample(logits, params_.as<DeviceSampleParams>(), lists_,
                                 reinterpret_cast<DeviceSampleResult*>(device),
                                 reinterpret_cast<DeviceTokenLogprob*>(device + top_offset),
                                 sampled.data(), context_.stream);
  CopyAsync(pinned.data, device, wanted, context_.stream);
  pending_.push_back({ticket, pinned, results, lists ? top_offset : 0});
}

void CudaSampler::Collect(uint64_t ticket) {
  while (!pending_.empty() && pending_.front().ticket <= ticket) {
    const Pending& p = pending_.front();
    const auto* from = reinterpret_cast<const DeviceSampleResult*>(p.pinned.data);
    const auto* top = reinterpret_cast<const DeviceTokenLogprob*>(p.pinned.data + p.top_offset);
    for (size_t i = 0; i < p.results.size(); ++i) {
      SampleResult& to = p.results[i];
      to.token_id = from[i].token_id;
      to.finite = from[i].finite != 0;
      if (p.top_offset == 0) continue;
      to.logprob = from[i].logprob;
      to.top = to.top.first(std::min(to.top.size(), static_cast<size_t>(from[i].num_top)));
      for (size_t t = 0; t < to.top.size(); ++t) {
        const DeviceTokenLogprob& entry = top[i * kMaxTopLogprobs + t];
        to.top[t] = {entry.token_id, entry.logprob};
      }
    }
    free_.push_back(p.pinned);
    pending_.pop_front();
  }
}

void CudaSampler::Drop() {
  for (const Pending& p : pending_) free_.push_back(p.pinned);
  pending_.clear();
}

}  // namespace quantd::QUANTD_CUDA_NS

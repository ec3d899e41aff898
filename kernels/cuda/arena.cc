// Arena: see arena.h.
#include "kernels/cuda/arena.h"

#include <algorithm>

#include "kernels/check.h"
#include "kernels/status.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr size_t kOwnSlabStep = size_t{2} << 20;  // the device's own granularity

size_t RoundUp(size_t bytes, size_t step) { return (bytes + step - 1) / step * step; }

}  // namespace

Arena::Arena(Stream stream, MemoryAccount* account, const ArenaOptions& options)
    : stream_(stream), account_(account), options_(options) {}

Arena::~Arena() {
  for (const auto& slab : slabs_) {
    QUANTD_CHECK(slab->used == 0, "{} bytes of a slab are still in use", slab->used);
    DeviceFree(slab->data);
  }
}

absl::StatusOr<Buffer> Arena::Allocate(size_t bytes, MemoryComponent component) {
  if (bytes == 0) return Buffer();
  // Larger than any device; and what is rounded up below must not overflow.
  if (bytes > size_t{1} << 48) return NoRoom(bytes, component);
  const size_t rounded = Rounded(bytes);
  std::byte* data = FindHole(rounded);
  if (data == nullptr && AddSlab(rounded)) data = FindHole(rounded);
  if (data == nullptr) return NoRoom(bytes, component);
  FillAsync(data, 0, rounded, stream_);
  return Buffer(data, bytes, this, account_, component);
}

// A slab of one buffer ends where the buffer does, so that tools see what is written behind it.
size_t Arena::Rounded(size_t bytes) const {
  return options_.slab_bytes == 0 ? bytes : RoundUp(bytes, kAlignment);
}

std::byte* Arena::FindHole(size_t bytes) {
  for (const auto& slab : slabs_) {
    for (auto hole = slab->holes.begin(); hole != slab->holes.end(); ++hole) {
      const auto [offset, size] = *hole;
      if (size < bytes) continue;
      slab->holes.erase(hole);
      if (size > bytes) slab->holes.emplace(offset + bytes, size - bytes);
      slab->used += bytes;
      return slab->data + offset;
    }
  }
  return nullptr;
}

bool Arena::AddSlab(size_t bytes) {
  const bool shared = bytes < options_.slab_bytes / 4;
  // What is left of a device may be less than a slab and still enough.
  const size_t own = options_.slab_bytes == 0 ? bytes : RoundUp(bytes, kOwnSlabStep);
  if ((shared && TryAddSlab(options_.slab_bytes)) || TryAddSlab(own)) return true;
  ReleaseEmptySlabs();
  return TryAddSlab(own) || (own > bytes && TryAddSlab(bytes));
}

bool Arena::TryAddSlab(size_t bytes) {
  if (options_.limit > 0 && taken_ + static_cast<int64_t>(bytes) > options_.limit) return false;
  auto* data = static_cast<std::byte*>(DeviceAllocate(bytes));
  if (data == nullptr) return false;
  taken_ += static_cast<int64_t>(bytes);
  slabs_.push_back(std::make_unique<Slab>(Slab{data, bytes, 0, {{0, bytes}}}));
  return true;
}

void Arena::ReleaseEmptySlabs() {
  // Work that used them may still run. An error shows at the next wait of the backend.
  if (std::any_of(slabs_.begin(), slabs_.end(), [](const auto& s) { return s->used == 0; })) {
    Synchronize(stream_).IgnoreError();
  }
  std::erase_if(slabs_, [this](const auto& slab) {
    if (slab->used != 0) return false;
    taken_ -= static_cast<int64_t>(slab->bytes);
    DeviceFree(slab->data);
    return true;
  });
}

void Arena::Free(void* data, size_t bytes) {
  const size_t rounded = Rounded(bytes);
  auto* const at = static_cast<std::byte*>(data);
  const auto slab = std::find_if(slabs_.begin(), slabs_.end(), [at](const auto& s) {
    return at >= s->data && at < s->data + s->bytes;
  });
  QUANTD_CHECK(slab != slabs_.end(), "memory that is not of this arena");
  Slab& s = **slab;
  s.used -= rounded;
  auto hole = s.holes.emplace(static_cast<size_t>(at - s.data), rounded).first;
  const auto next = std::next(hole);
  if (next != s.holes.end() && hole->first + hole->second == next->first) {
    hole->second += next->second;
    s.holes.erase(next);
  }
  if (hole != s.holes.begin()) {
    const auto before = std::prev(hole);
    if (before->first + before->second == hole->first) {
      before->second += hole->second;
      s.holes.erase(hole);
    }
  }
  // Slabs of one buffer go back at once when nothing is shared: the next one is of another size.
  if (options_.slab_bytes == 0) ReleaseEmptySlabs();
}

absl::Status Arena::NoRoom(size_t bytes, MemoryComponent component) const {
  std::string taken;
  for (int i = 0; i < kNumMemoryComponents; ++i) {
    const auto c = static_cast<MemoryComponent>(i);
    if (account_->Bytes(c) == 0) continue;
    taken += fmt::format("{}{} {}", taken.empty() ? "" : ", ", ToString(c), account_->Bytes(c));
  }
  size_t holes = 0;
  for (const auto& slab : slabs_) holes += slab->bytes - slab->used;
  int64_t free = 0, total = 0;
  if (const auto facts = OpenDevice(options_.device); facts.ok()) {
    free = facts->free_memory;
    total = facts->total_memory;
  }
  if (options_.limit > 0) {
    total = std::min(total, options_.limit);
    free = std::min(free, options_.limit - taken_);
  }
  return ResourceExhausted(
      "no device memory for {} bytes of {}: {} of {} bytes are free, {} more in pieces; taken: {}",
      bytes, ToString(component), free, total, holes, taken.empty() ? "nothing" : taken);
}

}  // namespace quantd::QUANTD_CUDA_NS

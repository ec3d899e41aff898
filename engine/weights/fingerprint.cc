#include "engine/weights/fingerprint.h"

#include <algorithm>

#include "engine/weights/fnv.h"

namespace quantd {
namespace {

constexpr size_t kSampleBytes = 64;
constexpr size_t kSamples = 4;  // of a tensor, evenly spread

}  // namespace

std::string CheckpointFingerprint(const Checkpoint& checkpoint) {
  Fnv64 hash;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    hash.Add(std::string_view(name));
    hash.Add(static_cast<int64_t>(tensor.dtype));
    for (const int64_t dim : tensor.shape) hash.Add(dim);
    hash.Add(static_cast<int64_t>(tensor.data.size()));
    for (size_t i = 0; i < kSamples; ++i) {
      const size_t at = tensor.data.size() / kSamples * i;
      hash.Add(tensor.data.subspan(at, std::min(kSampleBytes, tensor.data.size() - at)));
    }
  }
  return hash.Hex();
}

}  // namespace quantd

#include "engine/weights/fingerprint.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/weights/files.h"
#include "engine/weights/fnv.h"
#include "engine/weights/json_check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr size_t kSampleBytes = 64;
constexpr size_t kSamples = 4;  // of a tensor, from its first bytes to its last
constexpr int64_t kMaxConfigBytes = 16 << 20;

}  // namespace

std::string CheckpointFingerprint(const Checkpoint& checkpoint) {
  Fnv64 hash;
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    hash.Add(std::string_view(name));
    hash.Add(static_cast<int64_t>(tensor.dtype));
    for (const int64_t dim : tensor.shape) hash.Add(dim);
    hash.Add(static_cast<int64_t>(tensor.data.size()));
    const size_t sample = std::min(kSampleBytes, tensor.data.size());
    const size_t step = (tensor.data.size() - sample) / (kSamples - 1);
    for (size_t i = 0; i < kSamples; ++i) hash.Add(tensor.data.subspan(step * i, sample));
  }
  return hash.Hex();
}

absl::StatusOr<std::string> ModelFingerprint(const std::filesystem::path& dir) {
  ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(dir));
  const std::filesystem::path file = dir / "config.json";
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMaxConfigBytes));
  RETURN_IF_ERROR(CheckJson(text, file.string()));
  nlohmann::json config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return DataLoss("{}: not an object", file.string());
  for (const char* key : {"_name_or_path", "transformers_version"}) config.erase(key);
  Fnv64 hash;
  hash.Add(CheckpointFingerprint(*checkpoint));
  hash.Add(config.dump());  // keys in order
  return hash.Hex();
}

}  // namespace quantd

// ConfigReader: typed values of a config.json, in either of transformers' spellings, with every
// fault collected. Used by the files of the architectures; lives while one config is read.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/decoder_spec.h"
#include "kernels/fault_list.h"

namespace quantd {

class ConfigReader {
 public:
  /// DATA_LOSS when `json` is not a JSON object. `source` names it in messages.
  static absl::StatusOr<ConfigReader> Parse(const std::string& json, const std::string& source);
  ConfigReader(ConfigReader&&) noexcept;
  ~ConfigReader();

  /// True when the key is there and not null.
  bool Has(std::string_view key) const;
  /// An integer in [min, max]; absent: `fallback`, or a fault when there is none.
  int64_t Int(std::string_view key, int64_t min, int64_t max,
              std::optional<int64_t> fallback = std::nullopt);
  /// The same where null is a value of its own, "none": 0. Absent: `fallback`.
  int64_t IntOrNull(std::string_view key, int64_t min, int64_t max, int64_t fallback);
  /// A finite number in (above, max].
  double Number(std::string_view key, double above, double max,
                std::optional<double> fallback = std::nullopt);
  /// As IntOrNull.
  double NumberOrNull(std::string_view key, double above, double max, double fallback);
  bool Bool(std::string_view key, bool fallback);
  std::string String(std::string_view key, const std::string& fallback);
  /// Token ids: an integer or a list of them, each below `limit`; absent: empty.
  std::vector<int32_t> TokenIds(std::string_view key, int64_t limit);
  /// The first of `architectures`; empty when there is none.
  std::string Architecture();
  /// dtype or torch_dtype.
  DType CheckpointDType();
  /// layer_types: whether each of `layers` is "sliding_attention"; nullopt when absent.
  std::optional<std::vector<bool>> SlidingLayers(int64_t layers);
  /// rope_parameters (transformers 5), or rope_theta and rope_scaling (4).
  struct RopeKeys {
    double theta = 10000.0;                // when the config has none
    const char* theta_key = "rope_theta";  // of transformers 4
    const char* scaling = "rope_scaling";  // as well; nullptr: it is not of this rope
    const char* layer_type = nullptr;      // its member of rope_parameters, if these are by layer
  };
  RopeSpec Rope(int64_t max_position_embeddings) {
    return Rope(max_position_embeddings, RopeKeys());
  }
  RopeSpec Rope(int64_t max_position_embeddings, const RopeKeys& keys);
  /// silu and its other name swish, or gelu_pytorch_tanh.
  Activation HiddenActivation(std::string_view key = "hidden_act",
                              const std::string& fallback = "silu");

  FaultList& faults();
  /// The faults so far as one status of `code`, "<source>: a; b".
  absl::Status ToStatus(absl::StatusCode code = absl::StatusCode::kDataLoss) const;

 private:
  struct Impl;
  explicit ConfigReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd

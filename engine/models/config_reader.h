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
  /// A finite number in (above, max].
  double Number(std::string_view key, double above, double max,
                std::optional<double> fallback = std::nullopt);
  bool Bool(std::string_view key, bool fallback);
  std::string String(std::string_view key, const std::string& fallback);
  /// Token ids: an integer or a list of them, each below `limit`; absent: empty.
  std::vector<int32_t> TokenIds(std::string_view key, int64_t limit);
  /// The first of `architectures`; empty when there is none.
  std::string Architecture();
  /// dtype or torch_dtype.
  DType CheckpointDType();
  /// rope_parameters (transformers 5), or rope_theta and rope_scaling (4).
  RopeSpec Rope(int64_t max_position_embeddings);
  /// hidden_act.
  Activation HiddenActivation();

  FaultList& faults();
  /// The faults so far as one status of `code`, "<source>: a; b".
  absl::Status ToStatus(absl::StatusCode code = absl::StatusCode::kDataLoss) const;

 private:
  struct Impl;
  explicit ConfigReader(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace quantd

// InspectModel: what is in a model folder and how it is quantized, without a backend.
//
// For `quantd inspect` and whoever has to decide before loading. Reads headers and small metadata;
// with `values` also every weight, norm and bias, one matrix at a time. Thread-safe: no state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/models/decoder_spec.h"

namespace quantd {

struct ModelReport {
  DecoderSpec spec;
  std::string quantization;          // "bitsandbytes 4-bit nf4, ..."; "none"
  bool trainable_with_peft = false;  // adapters can be trained over these weights by PEFT

  /// Modules that are stored alike.
  struct Group {
    std::string method;              // "gptq", "none", ...
    std::string format;              // QuantFormat::ToString of what stays resident
    std::string activation;          // "int8 per token", ...; empty: not quantized
    std::vector<std::string> kinds;  // last names, sorted: "down_proj", "o_proj"
    int64_t modules = 0;
    int64_t parameters = 0;
    int64_t file_bytes = 0;      // codes, scales and the rest, as stored
    int64_t resident_bytes = 0;  // as QuantFormat::StoredBytes counts
    double bits_per_weight() const {
      return parameters == 0
                 ? 0.0
                 : 8.0 * static_cast<double>(file_bytes) / static_cast<double>(parameters);
    }
  };
  std::vector<Group> groups;  // linears, embedding and head included

  /// Bytes of the file by component.
  struct Bytes {
    int64_t embedding = 0;
    int64_t linears = 0;
    int64_t head = 0;   // 0: tied
    int64_t norms = 0;  // and biases
    int64_t total = 0;  // all tensors
  };
  Bytes bytes;
  int64_t parameters = 0;
  std::vector<std::string> skipped;     // linears left in floating point beside quantized ones
  std::vector<std::string> suspicious;  // "model.layers.3.mlp.up_proj: ..."; norms and biases too
  std::string refusal;                  // why quantd cannot serve it; empty: it can

  double bits_per_weight() const {
    return parameters == 0
               ? 0.0
               : 8.0 * static_cast<double>(bytes.total) / static_cast<double>(parameters);
  }
};

/// NOT_FOUND when there is no such folder or config.json, DATA_LOSS when that is not readable. What
/// else is wrong is `refusal`, and the report says what could be found out all the same.
absl::StatusOr<ModelReport> InspectModel(const std::filesystem::path& dir, bool values);

}  // namespace quantd

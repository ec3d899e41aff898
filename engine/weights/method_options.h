// MethodOptions: one way to quantize a linear: a `quantization:` mapping of a profile or the
// quantization_config of a checkpoint, normalized. Values.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/tensor.h"

namespace quantd {

/// What one method has to be told (bits, group size, ...). Immutable. Each method has its own
/// subclass, which nothing outside engine/weights/methods looks into.
class MethodSettings {
 public:
  virtual ~MethodSettings() = default;
  /// As reports name the method: "bitsandbytes_4bit", "gptq".
  virtual std::string_view label() const = 0;
  /// The keys of a profile's `quantization:` mapping, "key: value" a line, but for quant_method,
  /// skip list and compute dtype: equal texts mean equal settings.
  virtual std::string ToYaml() const = 0;
  /// For messages: "4-bit nf4, double quantization".
  virtual std::string Describe() const = 0;
};

struct MethodOptions {
  std::string method = "none";  // quant_method: the name of a Method of the registry
  std::shared_ptr<const MethodSettings> settings;  // null: none
  /// Of activations: bnb_4bit_compute_dtype; with "none" `dtype`. Absent: the checkpoint's.
  std::optional<DType> compute_dtype;
  std::vector<std::string> skip_modules;  // names or "re:" patterns that stay in floating point

  bool is_none() const { return method == "none"; }
  std::string_view label() const { return settings ? settings->label() : "none"; }
  /// True when a weight quantized by either is the same: skip lists and compute dtype aside.
  bool SameWeights(const MethodOptions& other) const {
    return method == other.method &&
           (settings ? settings->ToYaml() : "") == (other.settings ? other.settings->ToYaml() : "");
  }
};

/// The settings of a method that is known to be S's.
template <typename S>
const S& SettingsOf(const MethodOptions& options) {
  return static_cast<const S&>(*options.settings);
}

}  // namespace quantd

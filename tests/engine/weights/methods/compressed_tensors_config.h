// The quantization_config of compressed-tensors, for tests. Header-only.
#pragma once

#include <fmt/format.h>

#include <string>

namespace quantd::testing_support {

/// One group that targets every linear.
inline std::string CtConfig(const std::string& format, const std::string& weights,
                            const std::string& activations = "null", const std::string& more = "") {
  return fmt::format(R"({{"quant_method": "compressed-tensors", "format": "{}",
    "quantization_status": "compressed", "ignore": ["lm_head"], "config_groups": {{"group_0":
    {{"targets": ["Linear"], "weights": {{{}}}, "input_activations": {}}}}}{}}})",
                     format, weights, activations, more);
}

inline const std::string kCtW4 =
    R"("num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": true)";
inline const std::string kCtW8 = R"("num_bits": 8, "type": "int", "strategy": "channel")";
inline const std::string kCtFp8 = R"("num_bits": 8, "type": "float", "strategy": "tensor")";
inline const std::string kCtStatic =
    R"({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false})";

}  // namespace quantd::testing_support

// The quantization_config of compressed-tensors: which group a module belongs to, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/weights/methods/checkpoint_builder.h"
#include "tests/engine/weights/methods/compressed_tensors_config.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::CtConfig;
using testing_support::Import;
using testing_support::kCtFp8;
using testing_support::kCtW4;
using testing_support::kCtW8;
using testing_support::TryConfig;

// ---- targets

const MethodOptions& Mixed() {
  static const MethodOptions options = Config(R"({"quant_method": "compressed-tensors",
    "format": "mixed-precision", "ignore": ["lm_head", "re:.*layers\\.3\\."], "config_groups": {
      "a": {"targets": ["re:.*self_attn", "model.layers.0.mlp.down_proj"],
            "format": "int-quantized", "weights": {"num_bits": 8, "strategy": "channel"}},
      "b": {"targets": ["Linear"], "format": "pack-quantized",
            "weights": {"num_bits": 4, "strategy": "group", "group_size": 64}},
      "c": {"targets": ["re:.*layers\\.1.*", "model.layers.0.self_attn.k_proj"],
            "format": "float-quantized",
            "weights": {"num_bits": 8, "type": "float", "strategy": "tensor"}}}})");
  return options;
}

// Checks a module of no tensors but an F32 weight_scale: the message names the group.
std::string GroupOf(const std::string& module) {
  CheckpointBuilder file;
  file.AddFloats(module + ".weight_scale", DType::kF32, {1}, {1.0f});
  const auto matrix = Import(*file.Open(), {module, 4, 64}, Mixed());
  return matrix.ok() ? "" : std::string(matrix.status().message());
}

TEST(CompressedTensors, NamesGoBeforeExpressionsBeforeClasses) {
  EXPECT_THAT(GroupOf("model.layers.0.self_attn.q_proj"), HasSubstr("int-quantized, a of"));
  EXPECT_THAT(GroupOf("model.layers.0.mlp.down_proj"), HasSubstr("int-quantized, a of"));
  EXPECT_THAT(GroupOf("model.layers.0.mlp.up_proj"), HasSubstr("pack-quantized, b of"));
  EXPECT_THAT(GroupOf("model.layers.1.mlp.up_proj"), HasSubstr("float-quantized, c of"));
  EXPECT_THAT(GroupOf("model.layers.0.self_attn.k_proj"), HasSubstr("float-quantized, c of"));
  // Both expressions match; "re:.*layers" is before "re:.*self".
  EXPECT_THAT(GroupOf("model.layers.1.self_attn.q_proj"), HasSubstr("float-quantized, c of"));
  EXPECT_THAT(GroupOf("model.layers.3.mlp.up_proj"), HasSubstr("no group of config.json"));
  EXPECT_THAT(GroupOf("lm_head"), HasSubstr("no group of config.json"));
}

// ---- what is refused, what is read

TEST(CompressedTensors, ConfigsThatAreRefused) {
  const struct {
    std::string config, message;
  } kCases[] = {
      {CtConfig("pack-quantized", R"("num_bits": 5, "strategy": "channel")"),
       "config_groups.group_0.weights: int of 5 bits in pack-quantized is not supported (2, 3, 4"},
      {CtConfig("pack-quantized", R"("num_bits": 6, "strategy": "channel")"), "int of 6 bits"},
      {CtConfig("pack-quantized", R"("num_bits": 7, "strategy": "channel")"), "int of 7 bits"},
      {CtConfig("marlin-24", kCtW4), "\"marlin-24\" stores sparse weights"},
      {CtConfig("dense", kCtW4), "\"dense\": weights are stored as floats"},
      {CtConfig("mxfp4-pack-quantized", kCtW4), "\"mxfp4-pack-quantized\" is not supported"},
      {CtConfig("int-quantized", R"("num_bits": 4, "strategy": "channel")"),
       "int of 4 bits in int-quantized"},
      {CtConfig("float-quantized", R"("num_bits": 8, "strategy": "channel")"),
       "int of 8 bits in float-quantized"},
      {CtConfig("nvfp4-pack-quantized",
                R"("num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 32)"),
       "float of 4 bits in nvfp4-pack-quantized"},
      {CtConfig("nvfp4-pack-quantized",
                R"("num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16)",
                R"({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                      "dynamic": "local"})"),
       "locally dynamic activations of float 4 bits per tensor_group"},
      {CtConfig("int-quantized", kCtW8,
                R"({"num_bits": 8, "strategy": "token", "dynamic": true, "symmetric": false})"),
       "asymmetric dynamic activations of int 8 bits per token"},
      {CtConfig("float-quantized", kCtFp8,
                R"({"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": true})"),
       "symmetric dynamic activations of float 8 bits per tensor"},
      {CtConfig("pack-quantized", kCtW4, "null", R"(, "transform_config": {"config_groups": {"R1":
                  {"type": "hadamard"}}})"),
       "transform_config: rotated weights"},
      {CtConfig("pack-quantized", kCtW4, "null",
                R"(, "sparsity_config": {"format": "sparse-24-bitmask"})"),
       "sparsity_config.format: \"sparse-24-bitmask\""},
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized",
           "quantization_status": "calibration", "config_groups": {"g": {"targets": ["Linear"],
           "weights": {"num_bits": 4, "group_size": 32}}}})",
       "quantization_status: \"calibration\""},
      {R"({"quant_method": "compressed-tensors", "format": "int-quantized",
           "config_groups": {"W8A8": ["Linear"]}})",
       "config_groups.W8A8: preset schemes"},
      {R"x({"quant_method": "compressed-tensors", "format": "int-quantized",
           "config_groups": {"g": {"targets": ["re:(?P<x>a)"], "weights": {"num_bits": 8}}}
})x",
       "config_groups.g.targets"},
  };
  for (const auto& c : kCases) {
    const auto config = TryConfig(c.config);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kUnimplemented) << c.config;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.message));
  }
  const struct {
    std::string config, message;
  } kWrong[] = {
      {R"({"quant_method": "compressed-tensors", "format": "pack-quantized"})",
       "config_groups: missing or empty"},
      {CtConfig("pack-quantized", R"("num_bits": 4, "strategy": "group")"), "group_size: missing"},
      {CtConfig("pack-quantized", R"("num_bits": "four")"), "num_bits"},
      {CtConfig("float-quantized",
                R"("num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128])"),
       "block_structure"},
      {CtConfig("pack-quantized", R"("num_bits": 4, "strategy": "channel", "actorder": "group")"),
       "actorder: needs strategy group"},
  };
  for (const auto& c : kWrong) {
    const auto config = TryConfig(c.config);
    EXPECT_EQ(config.status().code(), absl::StatusCode::kDataLoss) << c.config;
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(c.message));
  }
}

TEST(CompressedTensors, ConfigsThatAreRead) {
  for (const char* more :
       {R"(, "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"})",
        R"(, "sparsity_config": {"format": "dense"}, "transform_config": {})",
        R"(, "transform_config": {"config_groups": {}}, "global_compression_ratio": 1.5)"}) {
    EXPECT_TRUE(TryConfig(CtConfig("pack-quantized", kCtW4, "null", more)).ok()) << more;
  }
  EXPECT_TRUE(TryConfig(CtConfig("naive-quantized", kCtFp8)).ok());
  EXPECT_TRUE(TryConfig(CtConfig("float-quantized", R"("num_bits": 8, "type": "float",
    "strategy": "block", "block_structure": "128x64")"))
                  .ok());
}

}  // namespace
}  // namespace quantd

// AutoRound checkpoints: fixtures of auto-round, its own keys, and what it calls its packings.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::AddAwq;
using testing_support::AddGptq;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::GroupedLinear;
using testing_support::Import;
using testing_support::kModule;
using testing_support::NumDifferent;
using testing_support::Random;
using testing_support::RandomLinear;
using testing_support::TryConfig;

std::string ConfigText(int bits, int64_t group, const std::string& packing,
                       const std::string& more = "") {
  return fmt::format(
      R"({{"quant_method": "auto-round", "bits": {}, "group_size": {}, "data_type": "int",
           "packing_format": "{}"{}}})",
      bits, group, packing, more);
}

TEST(AutoRound, FixturesDequantizeToTheLibrarysBits) {
  testing_support::ExpectFixtureWeights("autoround4_gptq");
  testing_support::ExpectFixtureWeights("autoround4_awq");
}

TEST(AutoRound, RandomLinearsOfEveryPackingComeBackBitForBit) {
  enum class Kind { kV1, kV2, kAwq };
  const std::vector<std::pair<const char*, Kind>> packings = {
      {"auto_round:gptq", Kind::kV1},
      {"auto_round:auto_gptq", Kind::kV1},
      {"auto_round:auto_gptq:exllamav2", Kind::kV1},
      {"auto_round:gptqmodel", Kind::kV2},
      {"auto_round", Kind::kV2},
      {"auto_round:awq", Kind::kAwq},
      {"auto_round:auto_awq", Kind::kAwq}};
  Random random(23);
  for (int i = 0; i < 60; ++i) {
    const auto& [packing, kind] = random.Of(packings);
    const int bits = kind == Kind::kAwq ? 4 : random.Of<int>({2, 3, 4, 8});
    const int64_t n = random.Integer(1, 40), k = random.Integer(32, 150);
    const int64_t group = random.Of<int64_t>({16, 32, 40});
    const bool symmetric = random.Integer(0, 1) == 0;
    const GroupedLinear l = RandomLinear(random, n, k, std::min(group, k), bits, symmetric,
                                         random.Of<DType>({DType::kF16, DType::kBF16}));
    CheckpointBuilder file;
    if (kind == Kind::kAwq) {
      AddAwq(file, kModule, l);
    } else {
      AddGptq(file, kModule, l, kind == Kind::kV1, false);
    }
    const WeightSource source = testing_support::ExpectComesBack(
        file, {kModule, n, k}, ConfigText(bits, group, packing), l.Weights());
    EXPECT_EQ(source.label, "auto-round");
  }
}

TEST(AutoRound, ExtraConfigNamesModulesThatDiffer) {
  Random random(29);
  CheckpointBuilder file;
  const GroupedLinear base = RandomLinear(random, 16, 64, 32, 4, true, DType::kF16);
  const GroupedLinear by_name = RandomLinear(random, 16, 64, 32, 8, true, DType::kF16);
  const GroupedLinear by_expression = RandomLinear(random, 16, 64, 64, 2, false, DType::kF16);
  const std::vector<std::pair<const char*, const GroupedLinear*>> modules = {
      {"model.layers.0.mlp.up_proj", &base},
      {"model.layers.0.mlp.down_proj", &by_name},
      {"model.layers.1.self_attn.q_proj", &by_expression}};
  for (const auto& [module, linear] : modules) AddGptq(file, module, *linear, true, false);
  file.AddFloats("model.layers.2.mlp.up_proj.weight", DType::kF16, {1}, {1.0f});
  const auto checkpoint = file.Open();
  const MethodOptions config =
      Config(ConfigText(4, 32, "auto_round:auto_gptq", R"(, "extra_config": {
      "model.layers.0.mlp.down_proj": {"bits": 8, "act_bits": 16},
      ".*layers\\.1\\..*": {"bits": 2, "group_size": 64, "sym": false},
      "model.layers.2.mlp.up_proj": {"bits": 16}})"));
  for (const auto& [module, linear] : modules) {
    const auto matrix = Import(*checkpoint, {module, 16, 64}, config);
    ASSERT_TRUE(matrix.ok()) << module << ": " << matrix.status();
    EXPECT_EQ(NumDifferent(matrix->DequantizeAll(), linear->Weights()), 0u) << module;
  }
  EXPECT_FALSE(AutoRoundMethod().Detect(*checkpoint, {"model.layers.2.mlp.up_proj", 1, 1}));
}

TEST(AutoRound, AModulesOwnBitsMustSuitThePacking) {
  Random random(29);
  CheckpointBuilder file;
  AddAwq(file, kModule, RandomLinear(random, 16, 64, 32, 4, true, DType::kF16));
  const auto checkpoint = file.Open();
  const MethodOptions config = Config(ConfigText(4, 32, "auto_round:auto_awq",
                                                 R"(, "extra_config": {"model.layers.0.mlp.up_proj":
                                                 {"bits": 8}})"));
  const auto matrix = Import(*checkpoint, {kModule, 16, 64}, config);
  EXPECT_TRUE(absl::IsUnimplemented(matrix.status())) << matrix.status();
  EXPECT_THAT(Message(matrix.status()),
              HasSubstr("model.layers.0.mlp.up_proj: 8 bits are not supported in AWQ's packing"));
}

TEST(AutoRound, NamesTheFaultsOfItsConfig) {
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  constexpr auto kNot = absl::StatusCode::kUnimplemented;
  struct Row {
    const char* keys;
    absl::StatusCode code;
    const char* message;
  };
  const Row table[] = {
      {R"("packing_format": "auto_round:marlin")", kNot,
       "packing_format: \"auto_round:marlin\" is not supported; supported: auto_round, "
       "auto_round:auto_gptq"},
      {R"("packing_format": "auto_round:gptq:marlin")", kNot, "\"auto_round:gptq:marlin\" is not"},
      {R"("packing_format": "auto_round:exllamav2")", kNot, "\"auto_round:exllamav2\" is not"},
      {R"("packing_format": "auto_round:llm_compressor")", kNot, "\"auto_round:llm_compressor\""},
      {R"("packing_format": "auto_round:fp8")", kNot, "\"auto_round:fp8\" is not supported"},
      {R"("packing_format": "mlx")", kNot, "\"mlx\" is not supported"},
      {R"("packing_format": "auto_round:auto_awq", "bits": 8)", kNot,
       "bits: 8 is not supported with auto_round:auto_awq; supported: 4"},
      {R"("bits": 6)", kNot, "bits: 6 is not supported"},
      {R"("data_type": "mx_fp")", kNot, "data_type: \"mx_fp\" is not supported; supported: int"},
      {R"("act_bits": 8)", kNot, "act_bits: quantized activations are not supported"},
      {R"("rotation_config": {"a": 1})", kNot, "rotation_config: rotated weights"},
      {R"("extra_config": {"a": 4})", kLoss, "extra_config[\"a\"]: \"4\" is not a mapping"},
      {R"("extra_config": {"(": {"bits": 4}})", kLoss, "is not a regular expression"},
      {R"("extra_config": {"a": {"bits": 7}})", kNot, "extra_config[\"a\"].bits: 7 is not"},
  };
  for (const Row& row : table) {
    const auto config = TryConfig(fmt::format(R"({{"quant_method": "auto-round", {}}})", row.keys));
    EXPECT_EQ(config.status().code(), row.code) << row.keys << ": " << config.status();
    EXPECT_THAT(Message(config.status()), HasSubstr(row.message)) << row.keys;
  }
  const auto fine = TryConfig(
      R"({"quant_method": "auto-round", "backend": "auto", "act_bits": 16, "iters": 200,
          "block_name_to_quantize": "model.layers", "extra_config": null})");
  EXPECT_TRUE(fine.ok()) << fine.status();
}

}  // namespace
}  // namespace quantd

// AWQ checkpoints: a fixture of GPTQModel, random linears from a packer of our own, every fault.
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
using testing_support::Random;
using testing_support::RandomLinear;
using testing_support::TryConfig;

std::string ConfigText(int64_t group) {
  return fmt::format(R"({{"quant_method": "awq", "bits": 4, "group_size": {}, "version": "gemm"}})",
                     group);
}

TEST(Awq, TheFixtureDequantizesToTheLibrarysBits) {
  testing_support::ExpectFixtureWeights("awq4_gemm");
}

TEST(Awq, RandomLinearsComeBackBitForBit) {
  Random random(17);
  for (int i = 0; i < 40; ++i) {
    const int64_t n = random.Integer(1, 40);
    const int64_t k = random.Integer(1, 150);
    const int64_t group = random.Of<int64_t>({8, 13, 32, 64, 128, k});
    const bool symmetric = random.Integer(0, 3) == 0;
    const GroupedLinear l = RandomLinear(random, n, k, std::min(group, k), 4, symmetric,
                                         random.Of<DType>({DType::kF16, DType::kBF16}));
    CheckpointBuilder file;
    AddAwq(file, kModule, l);
    const WeightSource source =
        testing_support::ExpectComesBack(file, {kModule, n, k}, ConfigText(group), l.Weights());
    if (symmetric) {
      EXPECT_EQ(source.format.codec, Codec::kInt4);
    }
  }
}

TEST(Awq, SaysTheFormat) {
  Random random(1);
  CheckpointBuilder file;
  AddAwq(file, kModule, RandomLinear(random, 16, 128, 64, 4, false, DType::kF16));
  const auto checkpoint = file.Open();
  WeightSource source;
  const auto matrix = Import(*checkpoint, {kModule, 16, 128}, Config(ConfigText(64)), &source);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_EQ(matrix->format.ToString(), "uint4.group64.f16.zero_u8");
  EXPECT_EQ(source.label, "awq");
  EXPECT_THAT(source.tensors, ::testing::UnorderedElementsAre(
                                  kModule + ".qweight", kModule + ".qzeros", kModule + ".scales"));
}

// GPTQ's and AWQ's tensors have the same names; their shapes tell them apart.
TEST(Awq, IsNotTakenForGptqNorGptqForIt) {
  Random random(1);
  const GroupedLinear l = RandomLinear(random, 32, 64, 64, 4, false, DType::kF16);
  CheckpointBuilder as_awq, as_gptq, broken;
  AddAwq(as_awq, kModule, l);
  AddGptq(as_gptq, kModule, l, true, true);
  AddAwq(broken, kModule, l);
  broken.tensors[kModule + ".qweight"].shape = {4, 64};
  const WeightShape shape{kModule, 32, 64};
  const auto awq = as_awq.Open(), gptq = as_gptq.Open(), neither = broken.Open();
  EXPECT_TRUE(AwqMethod().Detect(*awq, shape));
  EXPECT_FALSE(GptqMethod().Detect(*awq, shape));
  EXPECT_TRUE(GptqMethod().Detect(*gptq, shape));
  EXPECT_FALSE(AwqMethod().Detect(*gptq, shape));
  // What has neither's shape is claimed by the method that config.json names, which reports it.
  EXPECT_TRUE(AwqMethod().Detect(*neither, shape));
  EXPECT_TRUE(GptqMethod().Detect(*neither, shape));
  EXPECT_FALSE(AwqMethod().Detect(*awq, {"model.layers.0.mlp.down_proj", 32, 64}));
}

TEST(Awq, NamesEveryFaultOfTheTensors) {
  struct Fault {
    const char* what;
    std::function<void(CheckpointBuilder&)> damage;
    std::string message;
  };
  const std::string m = kModule;
  const std::vector<Fault> table = {
      {"shape of qweight",
       [&](auto& f) {
         f.tensors[m + ".qweight"].shape = {4, 64};
       },
       "tensor model.layers.0.mlp.up_proj.qweight: I32 [4, 64], expected I32 or U32 [64, 4] (4 "
       "bits"},
      {"dtype of qzeros", [&](auto& f) { f.tensors[m + ".qzeros"].dtype = StoredDType::kF32; },
       "qzeros: F32 [2, 4], expected I32 or U32 [2, 4] (group_size 32, config.json)"},
      {"no qzeros, which zero_point: false does not excuse",
       [&](auto& f) { f.tensors.erase(m + ".qzeros"); }, "qzeros I32 or U32 [2, 4] is missing"},
      {"groups of scales",
       [&](auto& f) {
         f.AddFloats(m + ".scales", DType::kF16, {4, 32}, std::vector<float>(128));
       },
       "scales: F16 [4, 32], expected F16 or BF16 or F32 [2, 32] (group_size 32, config.json)"},
      {"a NaN",
       [&](auto& f) {
         const uint16_t nan = 0x7e00;
         std::memcpy(f.tensors[m + ".scales"].bytes.data() + 6, &nan, 2);
       },
       "up_proj.scales: element 3 is nan"},
  };
  for (const Fault& fault : table) {
    Random random(11);
    CheckpointBuilder file;
    AddAwq(file, kModule, RandomLinear(random, 32, 64, 32, 4, false, DType::kF16));
    fault.damage(file);
    const auto checkpoint = file.Open();
    const auto matrix = Import(*checkpoint, {kModule, 32, 64}, Config(ConfigText(32)));
    EXPECT_TRUE(absl::IsDataLoss(matrix.status())) << fault.what << ": " << matrix.status();
    EXPECT_THAT(Message(matrix.status()), HasSubstr(fault.message)) << fault.what;
  }
}

TEST(Awq, ReadsTheConfigFileOfOldWriters) {
  testing_support::TempDir dir;
  testing_support::WriteFile(dir.path() / "config.json", "{}");
  testing_support::WriteFile(
      dir.path() / "quant_config.json",
      R"({"zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMM"})");
  const auto config = ReadQuantizationConfig(dir.path());
  ASSERT_TRUE(config.ok() && config->has_value()) << config.status();
  EXPECT_EQ((*config)->method, "awq");
  Random random(2);
  CheckpointBuilder file;
  AddAwq(file, kModule, RandomLinear(random, 16, 128, 64, 4, false, DType::kF16));
  EXPECT_TRUE(Import(*file.Open(), {kModule, 16, 128}, **config).ok()) << "groups of 64";
}

TEST(Awq, RefusesOtherLayoutsByName) {
  for (const char* layout : {"gemv", "gemv_fast", "llm-awq", "marlin", "exllama"}) {
    for (const char* key : {"version", "format", "checkpoint_format"}) {
      const auto config = TryConfig(fmt::format(
          R"({{"quant_method": "awq", "bits": 4, "group_size": 128, "{}": "{}"}})", key, layout));
      EXPECT_TRUE(absl::IsUnimplemented(config.status())) << layout << ": " << config.status();
      EXPECT_THAT(
          Message(config.status()),
          HasSubstr(fmt::format("quantization_config.{}: \"{}\" is not supported; supported: gemm",
                                key, layout)));
    }
  }
  const auto bits = TryConfig(R"({"quant_method": "awq", "bits": 8, "version": "gemm"})");
  EXPECT_TRUE(absl::IsUnimplemented(bits.status())) << bits.status();
  EXPECT_THAT(Message(bits.status()), HasSubstr("bits: 8 is not supported; supported: 4"));
  const auto fine = TryConfig(
      R"({"quant_method": "awq", "bits": 4, "version": "GEMM", "zero_point": true,
          "modules_to_not_convert": ["visual"], "do_fuse": false})");
  EXPECT_TRUE(fine.ok()) << fine.status();
}

}  // namespace
}  // namespace quantd

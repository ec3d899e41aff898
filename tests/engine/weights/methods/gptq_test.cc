// GPTQ checkpoints: fixtures of GPTQModel, random linears from a packer of our own, every fault by
// message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "engine/weights/loader.h"
#include "kernels/ref/ref_backend.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
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

std::string ConfigText(int bits, int64_t group, bool v2, const std::string& more = "") {
  return fmt::format(
      R"({{"quant_method": "gptq", "bits": {}, "group_size": {}, "checkpoint_format": "{}"{}}})",
      bits, group, v2 ? "gptq_v2" : "gptq", more);
}

TEST(Gptq, FixturesDequantizeToTheLibrarysBits) {
  for (const char* fixture : {"gptq4_sym", "gptq4_asym_descact", "gptq4_v2_asym", "gptq8_sym",
                              "gptq3_sym", "gptq2_asym", "gptq4_channel"}) {
    testing_support::ExpectFixtureWeights(fixture);
  }
}

TEST(Gptq, RandomLinearsComeBackBitForBit) {
  Random random(7);
  for (int i = 0; i < 120; ++i) {
    const int bits = random.Of<int>({2, 3, 4, 8});
    const int64_t n = random.Integer(1, 40);
    const int64_t k = random.Integer(1, 150);
    const bool whole = random.Integer(0, 4) == 0;
    const int64_t group = whole ? k : random.Of<int64_t>({8, 13, 32, 64, 128});
    const bool symmetric = random.Integer(0, 1) == 0, v2 = random.Integer(0, 1) == 0;
    const DType dtype = random.Of<DType>({DType::kF16, DType::kBF16, DType::kF32});
    GroupedLinear l = RandomLinear(random, n, k, std::min(group, k), bits, symmetric, dtype);
    const bool shuffled = random.Integer(0, 1) == 0;
    for (size_t at = l.g_idx.size(); shuffled && at > 1; --at) {
      std::swap(l.g_idx[at - 1],
                l.g_idx[static_cast<size_t>(random.Integer(0, static_cast<int64_t>(at) - 1))]);
    }
    const bool sorted = std::is_sorted(l.g_idx.begin(), l.g_idx.end());
    CheckpointBuilder file;
    AddGptq(file, kModule, l, !v2, !sorted || random.Integer(0, 1) == 0);
    const WeightSource source = testing_support::ExpectComesBack(
        file, {kModule, n, k}, ConfigText(bits, whole ? -1 : group, v2), l.Weights());
    const std::string format = source.format.ToString();
    EXPECT_EQ(source.format.reordered, !sorted) << format;
    // Random zero points of one element or two may be all in the middle.
    if (symmetric && bits != 2) {
      EXPECT_THAT(format, ::testing::StartsWith("int")) << format;
    }
    if (bits == 2) {
      EXPECT_THAT(format, ::testing::StartsWith("uint2.")) << format;
    }
  }
}

TEST(Gptq, SaysTheFormatOfEveryKind) {
  const auto format = [](int bits, int64_t group, bool symmetric, bool reversed) {
    Random random(1);
    GroupedLinear l = RandomLinear(random, 32, 128, group, bits, symmetric, DType::kF16);
    if (reversed) std::reverse(l.g_idx.begin(), l.g_idx.end());
    CheckpointBuilder file;
    AddGptq(file, kModule, l, true, true);
    const auto checkpoint = file.Open();
    const auto matrix =
        Import(*checkpoint, {kModule, 32, 128}, Config(ConfigText(bits, group, false)));
    return matrix.ok() ? matrix->format.ToString() : Message(matrix.status());
  };
  EXPECT_EQ(format(4, 128, true, false), "int4.group128.f16");
  EXPECT_EQ(format(4, 64, false, false), "uint4.group64.f16.zero_u8");
  EXPECT_EQ(format(4, 32, false, true), "uint4.group32.f16.zero_u8.reordered");
  EXPECT_EQ(format(8, 128, true, false), "int8.group128.f16");
  EXPECT_EQ(format(8, 64, false, false), "uint8.group64.f16.zero_u8");
  EXPECT_EQ(format(3, 64, true, false), "int4.group64.f16");
  EXPECT_EQ(format(3, 64, false, false), "uint4.group64.f16.zero_u8");
  EXPECT_EQ(format(2, 64, true, false), "uint2.group64.f16.zero_u8");
}

// A zero point of 0 is stored as -1, which borrows from the neighbour: adding one to each field by
// itself would read the neighbour one too low.
TEST(Gptq, AZeroPointOfZeroBorrowsFromItsNeighbour) {
  Random random(3);
  GroupedLinear l = RandomLinear(random, 8, 8, 8, 4, false, DType::kF16);
  l.zeros = {0, 5, 0, 0, 15, 7, 3, 0};
  CheckpointBuilder file;
  AddGptq(file, kModule, l, true, false);
  const auto& words = file.tensors[kModule + ".qzeros"].bytes;
  uint32_t word = 0;
  std::memcpy(&word, words.data(), 4);
  EXPECT_EQ(word, 0x037f0050u - 0x11111111u);
  EXPECT_NE(((word >> 4) + 1) & 15u, 5u) << "field 1 alone reads wrongly";
  const auto checkpoint = file.Open();
  const auto matrix = Import(*checkpoint, {kModule, 8, 8}, Config(ConfigText(4, 8, false)));
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_THAT(matrix->zeros, ::testing::ElementsAre(0, 5, 0, 0, 15, 7, 3, 0));
}

TEST(Gptq, DynamicEntriesChangeTheModulesTheyMatch) {
  Random random(5);
  CheckpointBuilder file;
  const GroupedLinear own = RandomLinear(random, 16, 64, 32, 8, false, DType::kF16);
  const GroupedLinear other = RandomLinear(random, 16, 64, 64, 4, false, DType::kF16);
  AddGptq(file, "model.layers.1.mlp.up_proj", own, true, true);
  AddGptq(file, "model.layers.0.mlp.up_proj", other, true, true);
  AddGptq(file, "model.layers.0.mlp.down_proj", other, true, true);
  const auto checkpoint = file.Open();
  const MethodOptions config = Config(ConfigText(4, 64, false, R"(, "dynamic": {
      "+:model\\.layers\\.1\\..*up_proj": {"bits": 8, "group_size": 32},
      "-:.*\\.down_proj": {}, ".*gate_proj": {"sym": false}})"));
  for (const auto& [module, linear] : {std::pair{"model.layers.1.mlp.up_proj", &own},
                                       std::pair{"model.layers.0.mlp.up_proj", &other},
                                       std::pair{"model.layers.0.mlp.down_proj", &other}}) {
    const auto matrix = Import(*checkpoint, {module, 16, 64}, config);
    ASSERT_TRUE(matrix.ok()) << module << ": " << matrix.status();
    EXPECT_EQ(NumDifferent(matrix->DequantizeAll(), linear->Weights()), 0u) << module;
  }
}

TEST(Gptq, AcceptsTheBiasOfZerosThatAutoGptqWroteEverywhere) {
  Random random(5);
  CheckpointBuilder file;
  AddGptq(file, kModule, RandomLinear(random, 16, 64, 64, 4, true, DType::kF16), true, true);
  const std::string bias = kModule + ".bias";
  const auto named = [&] {
    WeightSource source;
    const auto checkpoint = file.Open();
    EXPECT_TRUE(
        Import(*checkpoint, {kModule, 16, 64}, Config(ConfigText(4, 64, false)), &source).ok());
    return std::count(source.tensors.begin(), source.tensors.end(), bias) == 1;
  };
  file.AddFloats(bias, DType::kF16, {16}, std::vector<float>(16, 0.0f));
  EXPECT_TRUE(named());
  file.AddFloats(bias, DType::kF16, {16}, std::vector<float>(16, 0.5f));
  EXPECT_FALSE(named()) << "a bias with values is the model's";
}

// Where the model has a bias, one of zeros is the method's and the model's; its bytes count once.
TEST(Gptq, ABiasOfZerosCountsOnce) {
  Random random(5);
  CheckpointBuilder file;
  AddGptq(file, "up", RandomLinear(random, 16, 64, 64, 4, true, DType::kF16), true, true);
  file.AddFloats("up.bias", DType::kF16, {16}, std::vector<float>(16, 0.0f));
  file.AddFloats("embed.weight", DType::kF16, {2, 64}, std::vector<float>(128, 1.0f));
  ExpectedWeights expected;
  expected.embedding = {"embed", 2, 64};
  expected.tied_head = "lm_head";
  expected.groups = {{{"up", 16, 64, /*bias=*/true}}};
  WeightLoaderOptions options;
  options.prequantized = Config(ConfigText(4, 64, false));
  int64_t done = 0, total = 0;
  options.on_progress = [&](int64_t d, int64_t t, const std::string&) { done = d, total = t; };
  const auto checkpoint = file.Open();
  const auto backend = CreateRefBackend();
  const auto loaded = LoadWeights(*checkpoint, expected, options, *backend);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->groups[0][0].bias.bytes(), 16 * sizeof(float));
  EXPECT_EQ(total, checkpoint->total_bytes());
  EXPECT_EQ(done, total);
}

TEST(Gptq, ReadsTheConfigFileOfOldWriters) {
  testing_support::TempDir dir;
  testing_support::WriteFile(dir.path() / "config.json", "{}");
  testing_support::WriteFile(
      dir.path() / "quantize_config.json",
      R"({"bits": 4, "group_size": -1, "damp_percent": 0.01, "desc_act": true, "sym": true,
          "true_sequential": true, "model_name_or_path": null, "model_file_base_name": "model"})");
  const auto config = ReadQuantizationConfig(dir.path());
  ASSERT_TRUE(config.ok() && config->has_value()) << config.status();
  EXPECT_EQ(Describe(**config), "gptq 4-bit, a group a row");
}

struct GptqFault {
  const char* what;
  std::function<void(CheckpointBuilder&)> damage;
  absl::StatusCode code;
  std::string message;
};

TEST(Gptq, NamesEveryFaultOfTheTensors) {
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  const std::string m = kModule;
  const auto set = [&](CheckpointBuilder& f, const char* name, size_t at, auto value) {
    std::memcpy(f.tensors[m + name].bytes.data() + at * sizeof(value), &value, sizeof(value));
  };
  const std::vector<GptqFault> table = {
      {"shape of qweight",
       [&](auto& f) {
         f.tensors[m + ".qweight"].shape = {16, 16};
       },
       kLoss,
       "model.safetensors: tensor model.layers.0.mlp.up_proj.qweight: I32 [16, 16], expected I32 "
       "or "
       "U32 [8, 32] (4 bits, config.json)"},
      {"dtype of qweight", [&](auto& f) { f.tensors[m + ".qweight"].dtype = StoredDType::kF32; },
       kLoss, "qweight: F32 [8, 32], expected I32"},
      {"no qzeros", [&](auto& f) { f.tensors.erase(m + ".qzeros"); }, kLoss,
       "qzeros I32 or U32 [2, 4] is missing"},
      {"no scales", [&](auto& f) { f.tensors.erase(m + ".scales"); }, kLoss,
       "scales F16 or BF16 or F32 [2, 32] is missing (group_size 32, config.json)"},
      {"groups of scales",
       [&](auto& f) {
         f.AddFloats(m + ".scales", DType::kF16, {1, 32}, std::vector<float>(32));
       },
       kLoss,
       "scales: F16 [1, 32], expected F16 or BF16 or F32 [2, 32] (group_size 32, config.json)"},
      {"integer scales",
       [&](auto& f) {
         f.Add(m + ".scales", StoredDType::kI16, {2, 32}, std::vector<int16_t>(64));
       },
       kLoss, "scales: I16 [2, 32]"},
      {"a NaN", [&](auto& f) { set(f, ".scales", 33, uint16_t{0x7e00}); }, kLoss,
       "up_proj.scales: element 33 is nan"},
      {"an infinity", [&](auto& f) { set(f, ".scales", 2, uint16_t{0x7c00}); }, kLoss,
       "up_proj.scales: element 2 is inf"},
      {"g_idx too large", [&](auto& f) { set(f, ".g_idx", 5, int32_t{2}); }, kLoss,
       "g_idx: element 5 is 2, not one of 2 groups"},
      {"g_idx negative", [&](auto& f) { set(f, ".g_idx", 0, int32_t{-1}); }, kLoss,
       "g_idx: element 0 is -1"},
      {"length of g_idx",
       [&](auto& f) {
         f.tensors[m + ".g_idx"].shape = {64, 1};
       },
       kLoss, "g_idx: I32 [64, 1], expected I32 [64]"},
      {"unbalanced g_idx", [&](auto& f) { set(f, ".g_idx", 5, int32_t{1}); },
       absl::StatusCode::kUnimplemented,
       "g_idx: group 0 has 31 inputs; groups of other than 32 are not supported; "
       "instead: a checkpoint whose columns are in order"},
  };
  for (const GptqFault& fault : table) {
    Random random(11);
    CheckpointBuilder file;
    AddGptq(file, kModule, RandomLinear(random, 32, 64, 32, 4, false, DType::kF16), true, true);
    fault.damage(file);
    const auto checkpoint = file.Open();
    const auto matrix = Import(*checkpoint, {kModule, 32, 64}, Config(ConfigText(4, 32, false)));
    EXPECT_EQ(matrix.status().code(), fault.code) << fault.what << ": " << matrix.status();
    EXPECT_THAT(Message(matrix.status()), HasSubstr(fault.message)) << fault.what;
  }
}

TEST(Gptq, LeavesWhatItDoesNotKnowUnnamed) {
  Random random(11);
  CheckpointBuilder file;
  AddGptq(file, kModule, RandomLinear(random, 32, 64, 32, 4, false, DType::kF16), true, true);
  file.AddFloats(kModule + ".lora_A", DType::kF16, {1}, {1.0f});
  WeightSource source;
  const auto checkpoint = file.Open();
  ASSERT_TRUE(
      Import(*checkpoint, {kModule, 32, 64}, Config(ConfigText(4, 32, false)), &source).ok());
  EXPECT_EQ(source.tensors.size(), 4u);
  EXPECT_EQ(source.label, "gptq");
}

TEST(Gptq, RefusesVariantsByName) {
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  constexpr auto kNot = absl::StatusCode::kUnimplemented;
  struct Row {
    const char* keys;
    absl::StatusCode code;
    const char* message;
  };
  const Row table[] = {
      {R"("bits": 5)", kNot, "quantization_config.bits: 5 is not supported; supported: 2, 3, 4, 8"},
      {R"("bits": 6)", kNot, "bits: 6 is not supported"},
      {R"("bits": 7)", kNot, "bits: 7 is not supported"},
      {R"("bits": 4.5)", kLoss, "bits: \"4.5\" is not an integer"},
      {R"("sym": true)", kLoss, "quantization_config.bits: missing"},
      {R"("bits": 4, "group_size": 0)", kLoss, "group_size: 0 is neither -1 nor positive"},
      {R"("bits": 4, "checkpoint_format": "gptq_p")", kNot, "checkpoint_format: \"gptq_p\" is not"},
      {R"("bits": 4, "checkpoint_format": "marlin")", kNot, "\"marlin\" is not supported"},
      {R"("bits": 4, "format": "bitblas")", kNot, "\"bitblas\" is not supported"},
      {R"("bits": 4, "format": "exllama")", kNot, "\"exllama\" is not supported"},
      {R"("bits": 4, "is_marlin_format": true)", kNot, "\"marlin\" is not supported"},
      {R"("bits": 4, "format": "gptq", "checkpoint_format": "gptq_v2")", kLoss,
       "format: \"gptq\" contradicts checkpoint_format \"gptq_v2\""},
      {R"("bits": 4, "pack_dtype": "int16")", kNot, "pack_dtype: \"int16\" is not supported"},
      {R"("bits": 4, "method": "qqq")", kNot, "method: \"qqq\" is not supported"},
      {R"("bits": 4, "dynamic": {"+:(": {"bits": 8}})", kLoss, "is not a regular expression"},
      {R"("bits": 4, "dynamic": {"+:a": {"bits": 6}})", kNot, "dynamic[\"+:a\"].bits: 6 is not"},
      {R"("bits": 4, "dynamic": {"+:a": 6})", kLoss, "dynamic[\"+:a\"]: \"6\" is not a mapping"},
  };
  for (const Row& row : table) {
    const auto config = TryConfig(fmt::format(R"({{"quant_method": "gptq", {}}})", row.keys));
    EXPECT_EQ(config.status().code(), row.code) << row.keys << ": " << config.status();
    EXPECT_THAT(Message(config.status()), HasSubstr(row.message)) << row.keys;
  }
  const auto fine = TryConfig(
      R"({"quant_method": "gptq", "bits": 4, "lm_head": true, "modules_in_block_to_quantize": [["a"]],
          "dynamic": null, "meta": {"x": 1}, "tokenizer": null})");
  EXPECT_TRUE(fine.ok()) << fine.status();
}

}  // namespace
}  // namespace quantd

// MLX's affine groups as transformers stores them: a fixture, random linears from a packer of our
// own, quantization on load to the bytes of the fixture, every fault by message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"
#include "tests/engine/weights/methods/on_load.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::Import;
using testing_support::kModule;
using testing_support::ProfileOptions;
using testing_support::Random;
using testing_support::Rounded;
using testing_support::TryConfig;

std::string ConfigText(int bits, int64_t group) {
  return fmt::format(R"({{"quant_method": "metal", "bits": {}, "group_size": {},
                          "modules_to_not_convert": ["lm_head"]}})",
                     bits, group);
}

struct Affine {
  int bits = 4;
  int64_t n = 0, k = 0, group = 64;
  DType dtype = DType::kBF16;
  std::vector<int> codes;              // [n, k]
  std::vector<float> scales, offsets;  // [n, k / group]
};

Affine RandomAffine(Random& random) {
  Affine a;
  a.bits = random.Of<int>({2, 4, 8});
  a.group = random.Of<int64_t>({16, 32, 64, 128});
  a.n = random.Integer(1, 40);
  a.k = a.group * random.Integer(1, 4);
  a.dtype = random.Of<DType>({DType::kBF16, DType::kF16, DType::kF32});
  const int most = (1 << a.bits) - 1;
  for (int64_t i = 0; i < a.n * a.k; ++i) {
    a.codes.push_back(static_cast<int>(random.Integer(0, most)));
  }
  for (int64_t i = 0; i < a.n * a.k / a.group; ++i) {
    a.scales.push_back(Rounded(a.dtype, random.Float(-0.03f, 0.1f)));
    a.offsets.push_back(Rounded(a.dtype, random.Float(-0.5f, 0.5f)));
  }
  return a;
}

std::vector<float> Weights(const Affine& a) {
  std::vector<float> w;
  for (size_t i = 0; i < a.codes.size(); ++i) {
    const size_t g = i / static_cast<size_t>(a.group);
    volatile float product = static_cast<float>(a.codes[i]) * a.scales[g];
    w.push_back(product + a.offsets[g]);
  }
  return w;
}

void AddAffine(CheckpointBuilder& file, const Affine& a) {
  const int64_t per_word = 32 / a.bits;
  std::vector<uint32_t> words(a.codes.size() / static_cast<size_t>(per_word));
  for (size_t i = 0; i < a.codes.size(); ++i) {
    words[i / static_cast<size_t>(per_word)] +=
        static_cast<uint32_t>(a.codes[i])
        << (i % static_cast<size_t>(per_word) * static_cast<size_t>(a.bits));
  }
  file.Add(kModule + ".weight", StoredDType::kU32, {a.n, a.k / per_word}, words);
  file.AddFloats(kModule + ".scales", a.dtype, {a.n, a.k / a.group}, a.scales);
  file.AddFloats(kModule + ".qbiases", a.dtype, {a.n, a.k / a.group}, a.offsets);
}

TEST(Metal, TheFixtureDequantizesToTheLibrarysBits) {
  testing_support::ExpectFixtureWeights("metal4");
}

TEST(Metal, RandomLinearsComeBackBitForBit) {
  Random random(53);
  std::set<std::string> formats;
  for (int i = 0; i < 80; ++i) {
    const Affine a = RandomAffine(random);
    SCOPED_TRACE(fmt::format("{} bits {} {} groups of {}", a.bits, a.n, a.k, a.group));
    CheckpointBuilder file;
    AddAffine(file, a);
    const WeightSource source = testing_support::ExpectComesBack(
        file, {kModule, a.n, a.k}, ConfigText(a.bits, a.group), Weights(a));
    EXPECT_EQ(source.label, "metal");
    if (a.group == 64) formats.insert(source.format.ToString());
  }
  EXPECT_THAT(formats, ::testing::IsSupersetOf({"uint4.group64.bf16.offset_bf16",
                                                "uint2.group64.f16.offset_f32",
                                                "uint8.group64.f32.offset_f32"}));
}

TEST(Metal, FaultsAreNamed) {
  const struct {
    std::string what;
    std::function<void(CheckpointBuilder&)> damage;
    std::string message;
  } kCases[] = {
      {"no codes", [](auto& f) { f.tensors.erase(kModule + ".weight"); },
       "(metal 4-bit, groups of 64): tensor " + kModule + ".weight U32 or I32 [2, 16] is missing"},
      {"no scales", [](auto& f) { f.tensors.erase(kModule + ".scales"); },
       ".scales BF16 or F16 or F32 [2, 2] is missing"},
      {"offsets of another dtype",
       [](auto& f) {
         f.AddFloats(kModule + ".qbiases", DType::kF32, {2, 2}, {0, 0, 0, 0});
       },
       ".qbiases: F32 [2, 2], expected BF16 [2, 2]"},
      {"codes of another width",
       [](auto& f) {
         f.Add(kModule + ".weight", StoredDType::kU32, {2, 32}, std::vector<uint32_t>(64));
       },
       ".weight: U32 [2, 32], expected U32 or I32 [2, 16]"},
      {"NaN scale",
       [](auto& f) {
         f.AddFloats(kModule + ".scales", DType::kBF16, {2, 2}, {1, NAN, 1, 1});
       },
       ".scales: element 1 is nan"},
      {"infinite offset",
       [](auto& f) {
         f.AddFloats(kModule + ".qbiases", DType::kBF16, {2, 2}, {1, 1, 1, INFINITY});
       },
       ".qbiases: element 3 is inf"},
  };
  Affine a;
  a.n = 2, a.k = 128;
  a.codes.assign(256, 3), a.scales.assign(4, 0.5f), a.offsets.assign(4, -1.0f);
  const MethodOptions config = Config(ConfigText(4, 64));
  for (const auto& c : kCases) {
    CheckpointBuilder file;
    AddAffine(file, a);
    ASSERT_TRUE(Import(*file.Open(), {kModule, 2, 128}, config).ok());
    c.damage(file);
    const absl::Status status = Import(*file.Open(), {kModule, 2, 128}, config).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << c.what << ": " << status;
    EXPECT_THAT(Message(status), HasSubstr(c.message)) << c.what;
  }
  CheckpointBuilder file;
  AddAffine(file, a);
  EXPECT_THAT(Message(Import(*file.Open(), {kModule, 2, 96}, config).status()),
              HasSubstr("96 inputs are not whole groups and words"));
}

TEST(Metal, ConfigFaults) {
  EXPECT_THAT(Message(TryConfig(ConfigText(3, 64)).status()),
              HasSubstr("bits: 3 is not supported; supported: 8, 4, 2"));
  EXPECT_THAT(Message(TryConfig(ConfigText(4, 0)).status()),
              HasSubstr("group_size: \"0\" is not an integer from 1"));
  EXPECT_EQ(Describe(Config(R"({"quant_method": "metal"})")), "metal 4-bit, groups of 64");
  const auto profile = ParseProfile("quantization: {quant_method: metal, group: 32}", "p");
  EXPECT_THAT(Message(profile.status()), HasSubstr("quantization.group: unknown key"));
}

// ---- on load

TEST(Metal, OnLoadMakesTheFixturesBytes) {
  testing_support::ExpectQuantizesToFixture("metal4", ProfileOptions("{quant_method: metal}"));
}

TEST(Metal, OnLoadOfGroupsWithoutASpanAndOfOtherWidths) {
  std::vector<float> values(64, 0.25f);
  for (size_t i = 32; i < 64; ++i) values[i] = static_cast<float>(i % 4) - 2.0f;
  const TensorView w(DType::kF32, values.data(), 1, 64);
  for (const DType plain : {DType::kBF16, DType::kF16, DType::kF32}) {
    const MethodOptions options = ProfileOptions("{quant_method: metal, bits: 2, group_size: 32}");
    const auto m = MethodOf(options).Quantize(w, options, plain);
    ASSERT_TRUE(m.ok()) << m.status();
    EXPECT_EQ(m->DequantizeAll(), values) << ToString(plain);
  }
  const MethodOptions options = ProfileOptions("{quant_method: metal, group_size: 24}");
  EXPECT_THAT(Message(MethodOf(options).CheckShape({"m", 1, 64}, options)),
              HasSubstr("64 inputs are not whole groups of 24"));
  EXPECT_TRUE(MethodOf(options).CheckShape({"m", 1, 48}, options).ok());
}

}  // namespace
}  // namespace quantd

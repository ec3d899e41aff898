// fp8 tiles: fixtures of transformers, random linears with ragged tiles, quantization on load to
// the bytes of the fixtures, every fault by message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"
#include "tests/engine/weights/methods/on_load.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::E4M3;
using testing_support::Import;
using testing_support::kModule;
using testing_support::ProfileOptions;
using testing_support::Random;
using testing_support::TryConfig;

std::string ConfigText(const std::string& more) { return R"({"quant_method": "fp8")" + more + "}"; }

struct Tiles {
  int64_t n = 0, k = 0, rows = 128, columns = 128;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

Tiles RandomTiles(Random& random, bool powers_of_two) {
  Tiles t;
  t.n = random.Integer(1, 300);
  t.k = random.Integer(1, 300);
  t.rows = random.Of<int64_t>({128, 128, 1, 64, 100});
  t.columns = random.Of<int64_t>({128, 128, 7, 64, 512});
  for (int64_t i = 0; i < t.n * t.k; ++i) {
    const uint8_t code = static_cast<uint8_t>(random.Integer(0, 255));
    t.codes.push_back((code & 127) == 127 ? 0 : code);
  }
  const int64_t tiles = ((t.n + t.rows - 1) / t.rows) * ((t.k + t.columns - 1) / t.columns);
  for (int64_t i = 0; i < tiles; ++i) {
    t.scales.push_back(powers_of_two
                           ? std::ldexp(1.0f, static_cast<int>(random.Integer(0, 254)) - 127)
                           : random.Float(0.0f, 0.1f));
  }
  return t;
}

std::vector<float> Weights(const Tiles& t) {
  std::vector<float> w;
  const int64_t grid = (t.k + t.columns - 1) / t.columns;
  for (int64_t i = 0; i < t.n * t.k; ++i) {
    const int64_t tile = i / t.k / t.rows * grid + i % t.k / t.columns;
    w.push_back(static_cast<float>(E4M3(t.codes[static_cast<size_t>(i)])) *
                t.scales[static_cast<size_t>(tile)]);
  }
  return w;
}

bool IsPowerOfTwo(StoredDType scale) {
  return scale == StoredDType::kF8E8M0 || scale == StoredDType::kU8;
}

void AddTiles(CheckpointBuilder& file, const Tiles& t, StoredDType scale_dtype,
              const std::string& scale_name = ".weight_scale_inv") {
  file.Add(kModule + ".weight", StoredDType::kF8E4M3, {t.n, t.k}, t.codes);
  const std::vector<int64_t> grid = {(t.n + t.rows - 1) / t.rows,
                                     (t.k + t.columns - 1) / t.columns};
  if (!IsPowerOfTwo(scale_dtype)) {
    file.AddFloats(kModule + scale_name, *ToDType(scale_dtype), grid, t.scales);
    return;
  }
  std::vector<uint8_t> exponents;
  for (const float s : t.scales) exponents.push_back(static_cast<uint8_t>(std::ilogb(s) + 127));
  file.Add(kModule + scale_name, scale_dtype, grid, exponents);
}

std::string TileConfig(const Tiles& t, bool powers_of_two) {
  return ConfigText(fmt::format(R"(, "weight_block_size": [{}, {}], "scale_fmt": "{}")", t.rows,
                                t.columns, powers_of_two ? "ue8m0" : "float"));
}

TEST(Fp8, FixturesDequantizeToTheLibrarysBits) {
  testing_support::ExpectFixtureWeights("fp8_block");
  testing_support::ExpectFixtureWeights("fp8_block_ue8m0");
}

// Of every dtype of scales under either scale_fmt: the tensor's dtype says what its bits are.
TEST(Fp8, RandomTilesComeBackBitForBit) {
  constexpr StoredDType kDTypes[] = {StoredDType::kF32, StoredDType::kBF16, StoredDType::kF16,
                                     StoredDType::kF8E8M0, StoredDType::kU8};
  Random random(5);
  for (int i = 0; i < 90; ++i) {
    const StoredDType dtype = kDTypes[i % 5];
    const bool ue8m0 = dtype == StoredDType::kU8 || i % 2 == 0;
    Tiles t = RandomTiles(random, IsPowerOfTwo(dtype));
    if (!IsPowerOfTwo(dtype)) {
      for (float& s : t.scales) s = testing_support::Rounded(*ToDType(dtype), s);
    }
    SCOPED_TRACE(fmt::format("{} {} tiles {} {} {}", t.n, t.k, t.rows, t.columns, ToString(dtype)));
    CheckpointBuilder file;
    AddTiles(file, t, dtype,
             random.Of<std::string>({".weight_scale_inv", ".scale", ".qscale_weight"}));
    const WeightSource source = testing_support::ExpectComesBack(file, {kModule, t.n, t.k},
                                                                 TileConfig(t, ue8m0), Weights(t));
    EXPECT_EQ(source.activation.kind, ActivationQuant::Kind::kFp8Group);
    EXPECT_EQ(source.activation.group, t.columns);
    EXPECT_EQ(source.activation.rounding, ActivationQuant::Rounding::kF32);
  }
}

TEST(Fp8, OneScaleForTheWholeWeight) {
  CheckpointBuilder file;
  file.Add(kModule + ".weight", StoredDType::kF8E4M3, {2, 2},
           std::vector<uint8_t>{0x38, 0xb8, 0x40, 0x00});
  file.Add(kModule + ".weight_scale_inv", StoredDType::kF32, {}, std::vector<float>{0.5f});
  file.Add(kModule + ".activation_scale", StoredDType::kF32, {}, std::vector<float>{0.25f});
  WeightSource source;
  const auto matrix = Import(
      *file.Open(), {kModule, 2, 2},
      Config(ConfigText(R"(, "weight_block_size": null, "activation_scheme": "static")")), &source);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_EQ(matrix->DequantizeAll(), (std::vector<float>{0.5f, -0.5f, 1.0f, 0.0f}));
  EXPECT_EQ(matrix->format.ToString(), "e4m3.row.f32");
  EXPECT_EQ(source.activation.kind, ActivationQuant::Kind::kFp8Tensor);
  EXPECT_EQ(source.activation.scale, 0.25f);
  EXPECT_EQ(source.tensors.size(), 3u);
}

TEST(Fp8, FaultsAreNamed) {
  Tiles t;
  t.n = 3, t.k = 200;
  t.codes.assign(600, 0x38);
  t.scales = {1.0f, 2.0f};
  const struct {
    std::string what;
    std::function<void(CheckpointBuilder&)> damage;
    std::string message;
  } kCases[] = {
      {"no scales", [](auto& f) { f.tensors.erase(kModule + ".weight_scale_inv"); },
       "weight_scale_inv F32 or BF16 or F16 or F8_E8M0 [1, 2] is missing"},
      {"other grid",
       [](auto& f) {
         f.Add(kModule + ".weight_scale_inv", StoredDType::kF32, {2, 1}, std::vector<float>{1, 1});
       },
       "F32 [2, 1], expected F32 or BF16 or F16 or F8_E8M0 [1, 2]"},
      {"bytes that config.json does not say to be powers of two",
       [](auto& f) {
         f.Add(kModule + ".weight_scale_inv", StoredDType::kU8, {1, 2}, std::vector<uint8_t>{1, 1});
       },
       "U8 [1, 2], expected F32 or BF16 or F16 or F8_E8M0 [1, 2]"},
      {"NaN power of two",
       [](auto& f) {
         f.Add(kModule + ".weight_scale_inv", StoredDType::kF8E8M0, {1, 2},
               std::vector<uint8_t>{1, 255});
       },
       "weight_scale_inv: element 1 is nan"},
      {"NaN scale",
       [](auto& f) {
         f.Add(kModule + ".weight_scale_inv", StoredDType::kF32, {1, 2},
               std::vector<float>{1, NAN});
       },
       "weight_scale_inv: element 1 is nan"},
      {"negative scale",
       [](auto& f) {
         f.Add(kModule + ".weight_scale_inv", StoredDType::kF32, {1, 2}, std::vector<float>{-1, 1});
       },
       "weight_scale_inv: element 0 is -1"},
      {"NaN code", [](auto& f) { f.tensors[kModule + ".weight"].bytes[7] = '\xff'; },
       "weight: element 7 is NaN (0xff)"},
      {"shape",
       [](auto& f) {
         f.tensors[kModule + ".weight"].shape = {200, 3};
       },
       "F8_E4M3 [200, 3], expected F8_E4M3 [3, 200]"},
  };
  for (const auto& c : kCases) {
    CheckpointBuilder file;
    AddTiles(file, t, StoredDType::kF32);
    c.damage(file);
    const auto matrix =
        Import(*file.Open(), {kModule, 3, 200}, Config(ConfigText(R"(, "scale_fmt": "float")")));
    EXPECT_EQ(matrix.status().code(), absl::StatusCode::kDataLoss) << c.what;
    EXPECT_THAT(std::string(matrix.status().message()), HasSubstr(c.message)) << c.what;
  }
  CheckpointBuilder file;
  AddTiles(file, t, StoredDType::kF32);
  const auto no_scale = Import(*file.Open(), {kModule, 3, 200},
                               Config(ConfigText(R"(, "activation_scheme": "static")")));
  EXPECT_THAT(std::string(no_scale.status().message()),
              HasSubstr("activation_scale F32 [] is missing"));
  file.Add(kModule + ".weight_scale_inv", StoredDType::kU8, {1, 2}, std::vector<uint8_t>{1, 255});
  const auto nan =
      Import(*file.Open(), {kModule, 3, 200}, Config(ConfigText(R"(, "scale_fmt": "ue8m0")")));
  EXPECT_THAT(std::string(nan.status().message()), HasSubstr("element 1 is NaN"));
}

TEST(Fp8, ConfigFaults) {
  EXPECT_THAT(std::string(TryConfig(ConfigText(R"(, "expert_dtype": "fp4")")).status().message()),
              HasSubstr("expert_dtype: fp4 experts are not supported"));
  EXPECT_THAT(
      std::string(TryConfig(ConfigText(R"(, "weight_block_size": [128])")).status().message()),
      HasSubstr("weight_block_size: \"[128]\" is not [rows, columns]"));
  EXPECT_THAT(std::string(TryConfig(ConfigText(R"(, "scale_fmt": "e5m2")")).status().message()),
              HasSubstr("scale_fmt: \"e5m2\" is not one of float, ue8m0"));
  EXPECT_THAT(std::string(TryConfig(R"({"quant_method": "mxfp8"})").status().message()),
              HasSubstr("mxfp8"));
  const auto profile =
      ParseProfile("quantization: {quant_method: fp8, activation_scheme: static}", "p");
  EXPECT_THAT(std::string(profile.status().message()), HasSubstr("activation_scheme: static"));
}

// ---- on load

TEST(Fp8, OnLoadMakesTheFixturesBytes) {
  testing_support::ExpectQuantizesToFixture(
      "fp8_block_ue8m0", ProfileOptions("{quant_method: fp8, scale_fmt: ue8m0}"));
  // Its base has more key and value heads; the rest was drawn from the same seed.
  testing_support::ExpectQuantizesToFixture("fp8_block", ProfileOptions("{quant_method: fp8}"),
                                            ".mlp.", 3);
}

TEST(Fp8, OnLoadIsTheFormulaForEveryShape) {
  Random random(8);
  for (int i = 0; i < 25; ++i) {
    const Tiles t = RandomTiles(random, false);
    std::vector<float> values;
    for (int64_t j = 0; j < t.n * t.k; ++j) {
      values.push_back(static_cast<float>(BF16(random.Float(-1, 1) * random.Float(0, 1))));
    }
    const MethodOptions options = ProfileOptions(
        fmt::format("{{quant_method: fp8, weight_block_size: [{}, {}]}}", t.rows, t.columns));
    const TensorView w(DType::kF32, values.data(), t.n, t.k);
    const auto matrix = MethodOf(options).Quantize(w, options, DType::kBF16);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    EXPECT_EQ(matrix->format, MethodOf(options).FormatOf({"m", t.n, t.k}, options, DType::kBF16));
    for (int64_t b = 0; b < static_cast<int64_t>(matrix->scales.size()); ++b) {
      float largest = 0;
      for (int64_t j = 0; j < t.n * t.k; ++j) {
        if (matrix->format.block.IndexOf(t.n, t.k, j / t.k, j % t.k) != b) continue;
        largest = std::max(largest, std::fabs(values[static_cast<size_t>(j)]));
      }
      const float s = largest > 0 ? 448.0f / largest : 1.0f;
      ASSERT_EQ(matrix->scales[static_cast<size_t>(b)], 1.0f / s);
      for (int64_t j = 0; j < t.n * t.k; ++j) {
        if (matrix->format.block.IndexOf(t.n, t.k, j / t.k, j % t.k) != b) continue;
        // No code is nearer.
        const float scaled = values[static_cast<size_t>(j)] * s;
        const uint8_t code = matrix->codes[static_cast<size_t>(j)];
        const double error = std::fabs(E4M3(code) - scaled);
        for (const int neighbour : {code - 1, code + 1}) {
          const uint8_t other = static_cast<uint8_t>(neighbour);
          if ((other & 127) == 127 || ((other ^ code) & 128) != 0) continue;
          ASSERT_LE(error, std::fabs(E4M3(other) - scaled));
        }
      }
    }
  }
}

TEST(Fp8, TilesOfZerosAndOfNextToNothing) {
  std::vector<float> values(256, 0.0f);
  values[1] = 1e-40f;
  const TensorView w(DType::kF32, values.data(), 1, 256);
  const MethodOptions options = ProfileOptions("{quant_method: fp8}");
  const auto matrix = MethodOf(options).Quantize(w, options, DType::kF32);
  ASSERT_TRUE(matrix.ok());
  EXPECT_EQ(matrix->scales[1], 1.0f);
  for (const float v : matrix->DequantizeAll()) ASSERT_TRUE(std::isfinite(v));
}

}  // namespace
}  // namespace quantd

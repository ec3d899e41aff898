// compressed-tensors checkpoints: fixtures of llm-compressor, random linears from a packer of our
// own, every fault by message. The config alone: compressed_tensors_config_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "engine/weights/loader.h"
#include "kernels/ref/ref_backend.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"
#include "tests/engine/weights/methods/compressed_tensors_config.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::CtConfig;
using testing_support::E4M3;
using testing_support::Import;
using testing_support::kCtFp8;
using testing_support::kCtStatic;
using testing_support::kCtW8;
using testing_support::kModule;
using testing_support::Random;

// ---- a linear, and its tensors

constexpr float kE2M1[16] = {0,     0.5f, 1,     1.5f, 2,     3,  4,  6,
                             -0.0f, -0.5, -1.0f, -1.5, -2.0f, -3, -4, -6};

struct Linear {
  std::string format = "pack-quantized", strategy = "group";
  int bits = 4;
  bool symmetric = true, ordered = true;
  int64_t n = 4, k = 64, group = 32, rows = 0;  // rows and group: of a block
  DType dtype = DType::kBF16;                   // of scales
  std::vector<int> codes = {};                  // [n, k] signed integers; bytes of floats
  std::vector<int> zeros = {};                  // [grid]
  std::vector<float> scales = {};               // [grid]
  std::vector<int32_t> g_idx = {};              // [k]
  float global_scale = 1.0f;

  bool nvfp4() const { return format == "nvfp4-pack-quantized"; }
  int64_t grid_rows() const {
    return strategy == "tensor" ? 1 : strategy == "block" ? (n + rows - 1) / rows : n;
  }
  int64_t grid_columns() const {
    return strategy == "group" || strategy == "block" ? (k + group - 1) / group : 1;
  }
  size_t BlockOf(int64_t row, int64_t col) const {
    const int64_t r = strategy == "tensor" ? 0 : strategy == "block" ? row / rows : row;
    const int64_t c = strategy == "block"   ? col / group
                      : strategy == "group" ? g_idx[static_cast<size_t>(col)]
                                            : 0;
    return static_cast<size_t>(r * grid_columns() + c);
  }
  std::vector<float> Weights() const {
    std::vector<float> w;
    for (int64_t row = 0; row < n; ++row) {
      for (int64_t col = 0; col < k; ++col) {
        const size_t b = BlockOf(row, col);
        const int code = codes[static_cast<size_t>(row * k + col)];
        if (nvfp4()) {
          w.push_back(kE2M1[code] * (scales[b] / global_scale));
        } else if (format == "float-quantized") {
          w.push_back(E4M3(static_cast<uint8_t>(code)) * scales[b]);
        } else {
          w.push_back(static_cast<float>(code - (symmetric ? 0 : zeros[b])) * scales[b]);
        }
      }
    }
    return w;
  }
  std::string Text() const {
    const bool is_float = nvfp4() || format == "float-quantized";
    std::string args =
        fmt::format(R"("num_bits": {}, "type": "{}", "strategy": "{}", "symmetric": {})", bits,
                    is_float ? "float" : "int", nvfp4() ? "tensor_group" : strategy, symmetric);
    if (strategy == "group") args += fmt::format(R"(, "group_size": {})", group);
    if (strategy == "block") args += fmt::format(R"(, "block_structure": [{}, {}])", rows, group);
    if (!ordered) args += R"(, "actorder": "group")";
    return CtConfig(format, args);
  }
};

Linear RandomLinear(Random& random) {
  Linear l;
  l.format = random.Of<std::string>({"pack-quantized", "pack-quantized", "int-quantized",
                                     "float-quantized", "nvfp4-pack-quantized"});
  l.n = random.Integer(1, 40);
  l.k = random.Integer(1, 150);
  l.group = random.Of<int64_t>({8, 13, 32, 64, 128});
  l.dtype = random.Of<DType>({DType::kBF16, DType::kF16, DType::kF32});
  l.strategy = random.Of<std::string>({"group", "channel", "tensor"});
  if (l.format == "pack-quantized") {
    l.bits = random.Of<int>({2, 3, 4, 8});
    l.symmetric = random.Integer(0, 1) == 0;
    l.ordered = l.strategy != "group" || random.Integer(0, 1) == 0;
  } else if (l.format == "int-quantized") {
    l.bits = 8;
    l.symmetric = random.Integer(0, 1) == 0;
  } else if (l.format == "float-quantized") {
    l.bits = 8;
    l.strategy = random.Of<std::string>({"group", "channel", "tensor", "block"});
    l.rows = random.Of<int64_t>({1, 7, 16, 128});
  } else {
    l.strategy = "group", l.group = 16, l.k = 16 * random.Integer(1, 6);
    l.global_scale = random.Float(1.0f, 3000.0f);
  }
  const int half = 1 << (l.bits - 1);
  for (int64_t i = 0; i < l.n * l.k; ++i) {
    int code = static_cast<int>(random.Integer(-half, half - 1));
    if (l.nvfp4()) code &= 15;
    if (l.format == "float-quantized") {
      code &= 255;
      if ((code & 127) == 127) code = 0;
    }
    l.codes.push_back(code);
  }
  for (int64_t i = 0; i < l.grid_rows() * l.grid_columns(); ++i) {
    const bool is_float = l.format == "float-quantized";
    const float scale = random.Float(is_float ? 0.0f : -0.02f, 0.1f);
    l.scales.push_back(l.nvfp4() ? E4M3(static_cast<uint8_t>(random.Integer(0, 126)))
                                 : testing_support::Rounded(l.dtype, scale));
    l.zeros.push_back(static_cast<int>(random.Integer(-half, half - 1)));
  }
  for (int64_t i = 0; i < l.k; ++i) l.g_idx.push_back(static_cast<int32_t>(i / l.group));
  for (size_t at = l.g_idx.size(); !l.ordered && at > 1; --at) {
    std::swap(l.g_idx[at - 1],
              l.g_idx[static_cast<size_t>(random.Integer(0, static_cast<int64_t>(at) - 1))]);
  }
  return l;
}

// Values of `bits`, `stride` apart, as a stream of bits; one int32 word after the other.
std::vector<int32_t> Stream(const std::vector<int>& values, size_t first, size_t stride,
                            size_t count, int bits) {
  std::vector<uint32_t> words((count * static_cast<size_t>(bits) + 31) / 32);
  for (size_t i = 0; i < count; ++i) {
    const int stored = values[first + i * stride] + (1 << (bits - 1));
    for (int b = 0; b < bits; ++b) {
      const size_t at = i * static_cast<size_t>(bits) + static_cast<size_t>(b);
      words[at / 32] |= (static_cast<uint32_t>(stored >> b) & 1u) << (at % 32);
    }
  }
  return {words.begin(), words.end()};
}

void AddLinear(CheckpointBuilder& file, const Linear& l, const std::string& module = kModule) {
  const std::string m = module + ".";
  const int64_t rows = l.grid_rows(), columns = l.grid_columns();
  const std::vector<int64_t> grid =
      l.strategy == "tensor" ? std::vector<int64_t>{1} : std::vector<int64_t>{rows, columns};
  const std::vector<int8_t> bytes(l.codes.begin(), l.codes.end());
  const size_t k = static_cast<size_t>(l.k);
  if (l.format == "pack-quantized") {
    std::vector<int32_t> words;
    for (int64_t row = 0; row < l.n; ++row) {
      const auto stream = Stream(l.codes, static_cast<size_t>(row * l.k), 1, k, l.bits);
      words.insert(words.end(), stream.begin(), stream.end());
    }
    file.Add(m + "weight_packed", StoredDType::kI32,
             {l.n, static_cast<int64_t>(words.size()) / l.n}, words);
    file.Add(m + "weight_shape", StoredDType::kI64, {2}, std::vector<int64_t>{l.n, l.k});
  } else if (l.nvfp4()) {
    std::vector<uint8_t> packed;
    for (size_t i = 0; i < l.codes.size(); i += 2) {
      packed.push_back(static_cast<uint8_t>(l.codes[i] | l.codes[i + 1] << 4));
    }
    file.Add(m + "weight_packed", StoredDType::kU8, {l.n, l.k / 2}, packed);
    file.Add(m + "weight_global_scale", StoredDType::kF32, {1}, std::vector<float>{l.global_scale});
  } else {
    file.Add(m + "weight", l.format == "int-quantized" ? StoredDType::kI8 : StoredDType::kF8E4M3,
             {l.n, l.k}, bytes);
  }
  if (l.nvfp4()) {
    std::vector<uint8_t> scales;
    for (const float s : l.scales) scales.push_back(E4M3Codec::Encode(s));
    file.Add(m + "weight_scale", StoredDType::kF8E4M3, grid, scales);
  } else {
    file.AddFloats(m + "weight_scale", l.dtype, grid, l.scales);
  }
  if (!l.symmetric && l.format == "pack-quantized" && l.strategy != "tensor") {
    const size_t n = static_cast<size_t>(l.n), g = static_cast<size_t>(columns);
    const size_t words = (n * static_cast<size_t>(l.bits) + 31) / 32;
    std::vector<int32_t> turned(words * g);
    for (size_t c = 0; c < g; ++c) {
      const auto stream = Stream(l.zeros, c, g, n, l.bits);
      for (size_t w = 0; w < words; ++w) turned[w * g + c] = stream[w];
    }
    file.Add(m + "weight_zero_point", StoredDType::kI32, {static_cast<int64_t>(words), columns},
             turned);
  } else if (!l.symmetric) {
    file.Add(m + "weight_zero_point", StoredDType::kI8, grid,
             std::vector<int8_t>(l.zeros.begin(), l.zeros.end()));
  }
  if (!l.ordered) file.Add(m + "weight_g_idx", StoredDType::kI32, {l.k}, l.g_idx);
}

// ---- weights

TEST(CompressedTensors, FixturesDequantizeToTheLibrarysBits) {
  for (const char* fixture : {"ct_w4a16", "ct_w4a16_asym", "ct_w4a16_actorder", "ct_w8a16",
                              "ct_w8a8_int8", "ct_w8a8_static", "ct_fp8_dynamic", "ct_fp8_block",
                              "ct_fp8_tensor", "ct_nvfp4a16", "ct_mixed"}) {
    testing_support::ExpectFixtureWeights(fixture);
  }
}

TEST(CompressedTensors, RandomLinearsComeBackBitForBit) {
  Random random(11);
  std::set<std::string> formats;
  for (int i = 0; i < 400; ++i) {
    const Linear l = RandomLinear(random);
    SCOPED_TRACE(l.Text() + fmt::format(" n {} k {}", l.n, l.k));
    CheckpointBuilder file;
    AddLinear(file, l);
    const WeightSource source =
        testing_support::ExpectComesBack(file, {kModule, l.n, l.k}, l.Text(), l.Weights());
    const std::string text = source.format.ToString();
    formats.insert(text.substr(0, text.find('.')) + (source.format.reordered ? " reordered" : ""));
  }
  EXPECT_THAT(formats,
              ::testing::IsSupersetOf({"int4", "int4 reordered", "uint4", "uint4 reordered",
                                       "uint2", "int8", "uint8", "e4m3", "e2m1"}));
}

// Written for activations that weight-only files do not quantize: it belongs to the module.
TEST(CompressedTensors, Nvfp4MayHaveAnInputScale) {
  Random random(13);
  Linear l = RandomLinear(random);
  while (!l.nvfp4()) l = RandomLinear(random);
  CheckpointBuilder file;
  AddLinear(file, l);
  file.Add(kModule + ".input_global_scale", StoredDType::kF32, {1}, std::vector<float>{448.0f});
  testing_support::ExpectComesBack(file, {kModule, l.n, l.k}, l.Text(), l.Weights());
}

TEST(CompressedTensors, FormatsAreAsNarrowAsTheCodes) {
  const auto format_of = [](const Linear& like) {
    Linear l = like;
    l.codes.assign(static_cast<size_t>(l.n * l.k), 0);
    const size_t grid = static_cast<size_t>(l.grid_rows() * l.grid_columns());
    l.scales.assign(grid, 0.5f);
    l.zeros.assign(grid, 0);
    for (int64_t i = 0; i < l.k; ++i) l.g_idx.push_back(static_cast<int32_t>(i / l.group));
    CheckpointBuilder file;
    AddLinear(file, l);
    const auto matrix = Import(*file.Open(), {kModule, l.n, l.k}, Config(l.Text()));
    return matrix.ok() ? matrix->format.ToString() : std::string(matrix.status().message());
  };
  EXPECT_EQ(format_of({.bits = 4}), "int4.group32.bf16");
  EXPECT_EQ(format_of({.bits = 4, .symmetric = false}), "uint4.group32.bf16.zero_u8");
  EXPECT_EQ(format_of({.bits = 3}), "int4.group32.bf16");
  EXPECT_EQ(format_of({.bits = 2}), "uint2.group32.bf16.zero_u8");
  EXPECT_EQ(format_of({.bits = 8, .dtype = DType::kF16}), "int8.group32.f16");
  // An order that leaves the groups where they are is none.
  EXPECT_EQ(format_of({.ordered = false}), "int4.group32.bf16");
  EXPECT_EQ(format_of({.format = "int-quantized", .strategy = "channel", .bits = 8}),
            "int8.row.bf16");
  EXPECT_EQ(format_of({.format = "float-quantized", .strategy = "tensor", .bits = 8}),
            "e4m3.row.bf16");
  EXPECT_EQ(format_of({.format = "float-quantized", .strategy = "block", .bits = 8, .rows = 16}),
            "e4m3.tile16x32.bf16");
}

// ---- activations

ActivationQuant ActivationOf(const std::string& activations, const std::string& weights = kCtW8,
                             const std::string& format = "int-quantized") {
  CheckpointBuilder file;
  file.Add(kModule + ".weight", format == "int-quantized" ? StoredDType::kI8 : StoredDType::kF8E4M3,
           {2, 4}, std::vector<int8_t>(8, 1));
  const bool tensor = weights == kCtFp8;
  file.AddFloats(kModule + ".weight_scale", DType::kBF16,
                 tensor ? std::vector<int64_t>{1} : std::vector<int64_t>{2, 1},
                 std::vector<float>(tensor ? 1 : 2, 0.5f));
  if (activations.find("false") != std::string::npos) {
    file.AddFloats(kModule + ".input_scale", DType::kBF16, {1}, {0.25f});
    file.Add(kModule + ".input_zero_point", StoredDType::kI8, {1},
             std::vector<int8_t>{static_cast<int8_t>(
                 activations.find("\"symmetric\": false") != std::string::npos ? -5 : 0)});
  }
  WeightSource source;
  const auto matrix = Import(*file.Open(), {kModule, 2, 4},
                             Config(CtConfig(format, weights, activations)), &source);
  EXPECT_TRUE(matrix.ok()) << matrix.status();
  return source.activation;
}

TEST(CompressedTensors, Activations) {
  using Kind = ActivationQuant::Kind;
  ActivationQuant expected;
  EXPECT_EQ(ActivationOf("null"), expected);
  expected.rounding = ActivationQuant::Rounding::kEveryStep;
  expected.kind = Kind::kInt8Token;
  EXPECT_EQ(ActivationOf(R"({"num_bits": 8, "strategy": "token", "dynamic": true})"), expected);
  expected.kind = Kind::kFp8Token;
  EXPECT_EQ(
      ActivationOf(R"({"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true})",
                   kCtFp8, "float-quantized"),
      expected);
  expected.kind = Kind::kFp8Group;
  expected.group = 128;
  EXPECT_EQ(ActivationOf(R"({"num_bits": 8, "type": "float", "strategy": "group",
                            "group_size": 128, "dynamic": true})",
                         kCtFp8, "float-quantized"),
            expected);
  expected.group = 0;
  expected.scale = 0.25f;
  expected.kind = Kind::kFp8Tensor;
  EXPECT_EQ(ActivationOf(kCtStatic, kCtFp8, "float-quantized"), expected);
  expected.kind = Kind::kInt8Tensor;
  expected.zero_point = -5;
  EXPECT_EQ(ActivationOf(R"({"num_bits": 8, "strategy": "tensor", "dynamic": false,
                            "symmetric": false})"),
            expected);
}

TEST(CompressedTensors, ModulesWithDifferentInputScalesAreNotFused) {
  CheckpointBuilder file;
  const auto add = [&file](const std::string& module, float input_scale) {
    Linear l{.format = "float-quantized", .strategy = "tensor", .bits = 8};
    l.codes.assign(static_cast<size_t>(l.n * l.k), 0x38);
    l.scales = {0.5f};
    AddLinear(file, l, module);
    file.AddFloats(module + ".input_scale", DType::kBF16, {1}, {input_scale});
  };
  add("q", 0.25f);
  add("k", 0.25f);
  add("v", 0.5f);
  file.AddFloats("embed.weight", DType::kBF16, {2, 64}, std::vector<float>(128, 1.0f));
  ExpectedWeights expected;
  expected.embedding = {"embed", 2, 64};
  expected.tied_head = "lm_head";
  expected.groups = {{{"q", 4, 64}, {"k", 4, 64}, {"v", 4, 64}}};
  WeightLoaderOptions options;
  options.prequantized = Config(CtConfig("float-quantized", kCtFp8, kCtStatic));
  options.compute_dtype = DType::kBF16;
  const auto backend = CreateRefBackend();
  const auto loaded = LoadWeights(*file.Open(), expected, options, *backend);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->groups[0].size(), 2u);
  EXPECT_EQ(loaded->groups[0][0].weight->segments().size(), 2u);
  EXPECT_EQ(loaded->groups[0][0].activation.scale, 0.25f);
  EXPECT_EQ(loaded->groups[0][1].activation.scale, 0.5f);
}

// ---- faults

struct Corruption {
  std::string what;
  std::function<void(CheckpointBuilder&)> damage;
  std::string message;
};

void ExpectFaults(const Linear& base, const std::vector<Corruption>& corruptions) {
  Random random(3);
  Linear l = base;
  const int half = 1 << (l.bits - 1);
  for (int64_t i = 0; i < l.n * l.k; ++i) {
    const int code = static_cast<int>(random.Integer(-half, half - 1));
    l.codes.push_back(l.format == "float-quantized" ? code & 0x77 : l.nvfp4() ? code & 15 : code);
  }
  const size_t grid = static_cast<size_t>(l.grid_rows() * l.grid_columns());
  l.scales.assign(grid, 0.5f);
  l.zeros.assign(grid, 1);
  for (int64_t i = 0; i < l.k; ++i)
    l.g_idx.push_back(static_cast<int32_t>((l.k - 1 - i) / l.group));
  for (const Corruption& c : corruptions) {
    CheckpointBuilder file;
    AddLinear(file, l);
    const WeightShape shape{kModule, l.n, l.k};
    ASSERT_TRUE(Import(*file.Open(), shape, Config(l.Text())).ok());
    c.damage(file);
    const auto matrix = Import(*file.Open(), shape, Config(l.Text()));
    EXPECT_THAT(std::string(matrix.status().message()), HasSubstr(c.message)) << c.what;
  }
}

std::string Part(const std::string& part) { return kModule + "." + part; }

TEST(CompressedTensors, DamagedPackedTensorsAreNamed) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  ExpectFaults(
      {.symmetric = false, .ordered = false},
      {{"no codes", [](auto& f) { f.tensors.erase(Part("weight_packed")); },
        "tensor " + Part("weight_packed") + " I32 [4, 8] is missing"},
       {"no scale", [](auto& f) { f.tensors.erase(Part("weight_scale")); },
        "tensor " + Part("weight_scale") + " BF16 or F16 or F32 [4, 2] is missing"},
       {"no zeros", [](auto& f) { f.tensors.erase(Part("weight_zero_point")); },
        "tensor " + Part("weight_zero_point") + " I32 [1, 2] is missing"},
       {"no shape", [](auto& f) { f.tensors.erase(Part("weight_shape")); },
        "weight_shape I64 [2] is missing"},
       {"no order", [](auto& f) { f.tensors.erase(Part("weight_g_idx")); },
        "weight_g_idx I32 [64] is missing"},
       {"other shape",
        [](auto& f) {
          f.Add(Part("weight_shape"), StoredDType::kI64, {2}, std::vector<int64_t>{4, 65});
        },
        "says [4, 65], config.json says [4, 64]"},
       {"codes of another width",
        [](auto& f) {
          f.Add(Part("weight_packed"), StoredDType::kI32, {4, 16}, std::vector<int32_t>(64));
        },
        "I32 [4, 16], expected I32 [4, 8]"},
       {"one scale a row",
        [](auto& f) {
          f.AddFloats(Part("weight_scale"), DType::kBF16, {4, 1}, {1, 1, 1, 1});
        },
        "BF16 [4, 1], expected BF16 or F16 or F32 [4, 2]"},
       {"a scale is NaN",
        [](auto& f) {
          f.AddFloats(Part("weight_scale"), DType::kBF16, {4, 2}, {1, 1, 1, kNan, 1, 1, 1, 1});
        },
        "weight_scale: element 3 is nan"},
       {"a group that is not there",
        [](auto& f) {
          f.Add(Part("weight_g_idx"), StoredDType::kI32, {64}, std::vector<int32_t>(64, 2));
        },
        "weight_g_idx: element 0 is 2, not one of 2 groups"},
       {"unequal groups",
        [](auto& f) {
          f.Add(Part("weight_g_idx"), StoredDType::kI32, {64}, std::vector<int32_t>(64, 1));
        },
        "weight_g_idx: group 0 has 0 inputs; groups of other than 32 are not supported"}});
}

TEST(CompressedTensors, DamagedFloatsAndActivationsAreNamed) {
  ExpectFaults({.format = "float-quantized", .strategy = "channel", .bits = 8},
               {{"a NaN", [](auto& f) { f.tensors[Part("weight")].bytes[5] = '\x7f'; },
                 "weight: element 5 is NaN (0x7f)"},
                {"a scale is negative",
                 [](auto& f) {
                   f.AddFloats(Part("weight_scale"), DType::kBF16, {4, 1}, {1, -1, 1, 1});
                 },
                 "weight_scale: element 1 is -1"},
                {"integers", [](auto& f) { f.tensors[Part("weight")].dtype = StoredDType::kI8; },
                 "weight: I8 [4, 64], expected F8_E4M3 [4, 64]"}});
  ExpectFaults(
      {.format = "nvfp4-pack-quantized", .group = 16},
      {{"no global scale", [](auto& f) { f.tensors.erase(Part("weight_global_scale")); },
        "weight_global_scale F32 [1] is missing"},
       {"a global scale of zero",
        [](auto& f) {
          f.Add(Part("weight_global_scale"), StoredDType::kF32, {1}, std::vector<float>{0});
        },
        "weight_global_scale: is 0; a scale is positive"},
       {"an input scale of another shape",
        [](auto& f) {
          f.Add(Part("input_global_scale"), StoredDType::kF32, {2}, std::vector<float>{1, 1});
        },
        "input_global_scale: F32 [2], expected F32 [1]"},
       {"a negative scale", [](auto& f) { f.tensors[Part("weight_scale")].bytes[3] = '\xb8'; },
        "weight_scale: element 3 is -1"},
       {"a NaN scale", [](auto& f) { f.tensors[Part("weight_scale")].bytes[2] = '\x7f'; },
        "weight_scale: element 2 is nan"}});
  ExpectFaults({.format = "int-quantized", .strategy = "channel", .bits = 8},
               {{"zero points of a symmetric weight",
                 [](auto& f) {
                   f.Add(Part("weight_zero_point"), StoredDType::kI8, {4, 1},
                         std::vector<int8_t>{0, 0, 3, 0});
                 },
                 "weight_zero_point: is not zero, config.json says symmetric"}});
}

TEST(CompressedTensors, ZeroPointsOfNarrowCodesInBytesAreInRange) {
  Linear l{.strategy = "tensor", .symmetric = false};
  l.codes.assign(static_cast<size_t>(l.n * l.k), 1);
  l.scales = {1.0f};
  l.zeros = {-9};
  CheckpointBuilder file;
  AddLinear(file, l);
  const auto matrix = Import(*file.Open(), {kModule, l.n, l.k}, Config(l.Text()));
  EXPECT_THAT(std::string(matrix.status().message()),
              HasSubstr("weight_zero_point: element 0 is -9, which 4 bits do not hold"));
}

TEST(CompressedTensors, StaticScalesAreChecked) {
  const auto message = [](const std::function<void(CheckpointBuilder&)>& add) {
    CheckpointBuilder file;
    file.Add(Part("weight"), StoredDType::kF8E4M3, {2, 4}, std::vector<int8_t>(8, 1));
    file.AddFloats(Part("weight_scale"), DType::kBF16, {1}, {0.5f});
    add(file);
    const auto matrix = Import(*file.Open(), {kModule, 2, 4},
                               Config(CtConfig("float-quantized", kCtFp8, kCtStatic)));
    return std::string(matrix.status().message());
  };
  EXPECT_THAT(message([](auto&) {}), HasSubstr("input_scale BF16 or F16 or F32 [1] is missing"));
  EXPECT_THAT(message([](auto& f) { f.AddFloats(Part("input_scale"), DType::kF32, {1}, {0}); }),
              HasSubstr("input_scale: is 0; a scale is positive"));
  EXPECT_THAT(message([](auto& f) {
                f.AddFloats(Part("input_scale"), DType::kF32, {2}, {1, 1});
              }),
              HasSubstr("F32 [2], expected BF16 or F16 or F32 [1]"));
  EXPECT_THAT(message([](auto& f) {
                f.AddFloats(Part("input_scale"), DType::kF32, {1}, {1});
                f.Add(Part("input_zero_point"), StoredDType::kI8, {1}, std::vector<int8_t>{1});
              }),
              HasSubstr("input_zero_point: is not zero, config.json says symmetric"));
}

}  // namespace
}  // namespace quantd

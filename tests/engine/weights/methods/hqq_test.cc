// HQQ: checkpoints against hqq's own dequantization and a packer of our own, quantization on load
// against the codes hqq chose for the same weights, and every fault by message.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "engine/weights/profile.h"
#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::Floats;
using testing_support::Import;
using testing_support::kModule;
using testing_support::NumDifferent;
using testing_support::Random;
using testing_support::Rounded;
using testing_support::TryConfig;

constexpr char kConfig[] =
    R"({"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": {
        "weight_quant_params": {"nbits": 4, "channel_wise": true, "group_size": 64, "optimize": true,
                                "round_zero": true, "axis": 1, "view_as_float": false},
        "scale_quant_params": null, "zero_quant_params": null, "offload_meta": false}})";
std::string ConfigText(int bits, const std::string& group, int axis) {
  return fmt::format(R"({{"quant_method": "hqq", "quant_config": {{"weight_quant_params": {{
      "nbits": {}, "group_size": {}, "axis": {}}}, "scale_quant_params": null}}}})",
                     bits, group, axis);
}
const std::filesystem::path kHqqFixtures = std::filesystem::path(QUANTD_TEST_DATA) / "models";

// ---- checkpoints

/// A linear before it is packed: W [n, k] seen as rows of groups, codes in the order of memory.
struct HqqLinear {
  int64_t n = 0, k = 0, group = 0;
  int axis = 1, bits = 4;
  DType dtype = DType::kF32;
  std::vector<int> codes;            // [n, k]
  std::vector<float> scales, zeros;  // [n * k / group]

  std::vector<float> Weights() const {
    std::vector<float> w;
    const int64_t groups = n * k / group;
    for (int64_t i = 0; i < n * k; ++i) {
      const size_t g = static_cast<size_t>(axis == 1 ? i / group : i % groups);
      w.push_back((static_cast<float>(codes[static_cast<size_t>(i)]) - zeros[g]) * scales[g]);
    }
    return w;
  }
};

struct PackingOf {
  const char* name;
  int64_t slabs;
  int bits;
};
PackingOf PackingFor(int bits) {
  if (bits == 1) return {"1bit_u8", 8, 1};
  if (bits == 2) return {"2bit_u8", 4, 2};
  if (bits == 3) return {"3bit_32", 10, 3};
  return bits == 4 ? PackingOf{"4bit_u8", 2, 4} : PackingOf{"8bit_u8", 1, 8};
}

HqqLinear RandomHqq(Random& random, int64_t n, int64_t k, int64_t group, int axis, int bits,
                    DType dtype) {
  HqqLinear l{n, k, group, axis, bits, dtype, {}, {}, {}};
  for (int64_t i = 0; i < n * k; ++i) {
    l.codes.push_back(static_cast<int>(random.Integer(0, (1 << bits) - 1)));
  }
  for (int64_t i = 0; i < n * k / group; ++i) {
    l.scales.push_back(Rounded(dtype, random.Float(0.0f, 0.1f)));
    l.zeros.push_back(Rounded(dtype, random.Float(-2.0f, 17.0f)));
  }
  return l;
}

void AddText(CheckpointBuilder& file, const std::string& name, const std::string& text) {
  file.Add(name, StoredDType::kU8, {static_cast<int64_t>(text.size())},
           std::vector<uint8_t>(text.begin(), text.end()));
}

void AddHqq(CheckpointBuilder& file, const HqqLinear& l, bool as_float = false) {
  const std::string m = kModule + ".";
  const PackingOf packing = PackingFor(l.bits);
  const int64_t groups = l.n * l.k / l.group;
  const int64_t rows = l.axis == 1 ? groups : l.group, cols = l.axis == 1 ? l.group : groups;
  const int64_t packed_rows = (rows + packing.slabs - 1) / packing.slabs;
  std::vector<uint32_t> packed(static_cast<size_t>(packed_rows * cols));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t shift = (packing.slabs - 1 - r / packed_rows) * packing.bits;
      packed[static_cast<size_t>(r % packed_rows * cols + c)] |=
          static_cast<uint32_t>(l.codes[static_cast<size_t>(r * cols + c)]) << shift;
    }
  }
  std::vector<uint8_t> bytes(packed.begin(), packed.end());
  if (l.bits == 3) {
    bytes.resize(packed.size() * 4);
    std::memcpy(bytes.data(), packed.data(), bytes.size());
  }
  if (as_float) {
    file.Add(m + "W_q", StoredDType::kF16,
             {packed_rows, static_cast<int64_t>(bytes.size()) / packed_rows / 2}, bytes);
  } else {
    file.Add(m + "W_q", l.bits == 3 ? StoredDType::kI32 : StoredDType::kU8, {packed_rows, cols},
             bytes);
  }
  const std::vector<int64_t> shape = {l.axis == 1 ? groups : 1, l.axis == 1 ? 1 : groups};
  file.AddFloats(m + "scale", l.dtype, shape, l.scales);
  file.AddFloats(m + "zero", l.dtype, shape, l.zeros);
  file.Add(m + "shape", StoredDType::kI64, {2}, std::vector<int64_t>{l.n, l.k});
  const auto number = [&](const char* name, int64_t value) {
    file.Add(m + name, StoredDType::kI32, {}, std::vector<int32_t>{static_cast<int32_t>(value)});
  };
  number("nbits", l.bits);
  number("group_size", l.group);
  number("axis", l.axis);
  AddText(file, m + "packing", packing.name);
  AddText(file, m + "unpack_view_dtype", l.bits == 3 ? "torch.int32" : "torch.uint8");
  AddText(file, m + "compute_dtype", "torch.float16");
  const auto flag = [&](const char* name, bool value) {
    file.Add(m + name, StoredDType::kU8, {}, std::vector<uint8_t>{value});
  };
  flag("view_as_float", as_float);
  for (const char* name : {"quant_zero", "quant_scale", "offload_meta"}) flag(name, false);
  for (const char* name :
       {"channel_wise", "optimize", "round_zero", "stores_quant_config", "encoded_state_dict"}) {
    flag(name, true);
  }
}

TEST(Hqq, FixturesDequantizeToTheLibrarysBits) {
  for (const char* fixture :
       {"hqq4_axis1", "hqq4_axis0", "hqq8_axis1", "hqq3_axis1", "hqq2_axis0"}) {
    testing_support::ExpectFixtureWeights(fixture);
  }
}

TEST(Hqq, RandomLinearsComeBackBitForBit) {
  Random random(31);
  for (int i = 0; i < 120; ++i) {
    const int bits = random.Of<int>({1, 2, 3, 4, 5, 6, 8});
    const int axis = static_cast<int>(random.Integer(0, 1));
    const int64_t group = random.Of<int64_t>({8, 16, 24, 64});
    // Rows of groups must come in multiples of the slabs; a group may cross rows of W.
    const int64_t n = 8 * random.Integer(1, 4), k = group * random.Integer(1, 4) / (i % 2 + 1);
    if (n * k % group != 0 || (axis == 1 && n * k / group % 8 != 0)) continue;
    const HqqLinear l = RandomHqq(random, n, k, group, axis, bits,
                                  random.Of<DType>({DType::kF32, DType::kF16, DType::kBF16}));
    CheckpointBuilder file;
    AddHqq(file, l, random.Integer(0, 1) == 0);
    testing_support::ExpectComesBack(file, {kModule, n, k},
                                     ConfigText(bits, fmt::format("{}", group), axis), l.Weights());
  }
}

TEST(Hqq, SaysTheFormatOfEveryKind) {
  const auto format = [](int bits, int axis, DType dtype) {
    Random random(1);
    CheckpointBuilder file;
    AddHqq(file, RandomHqq(random, 16, 64, 64, axis, bits, dtype));
    const auto matrix =
        Import(*file.Open(), {kModule, 16, 64}, Config(ConfigText(bits, "64", axis)));
    return matrix.ok() ? matrix->format.ToString() : Message(matrix.status());
  };
  EXPECT_EQ(format(8, 1, DType::kF32), "uint8.flat64.f32.zero_f32");
  EXPECT_EQ(format(4, 1, DType::kBF16), "uint4.flat64.bf16.zero_bf16");
  EXPECT_EQ(format(3, 1, DType::kF16), "uint4.flat64.f16.zero_f16");
  EXPECT_EQ(format(2, 0, DType::kF16), "uint2.strided64.f16.zero_f16");
  EXPECT_EQ(format(1, 0, DType::kF16), "uint2.strided64.f16.zero_f16");
}

TEST(Hqq, NamesEveryFaultOfTheTensors) {
  constexpr auto kLoss = absl::StatusCode::kDataLoss;
  constexpr auto kNot = absl::StatusCode::kUnimplemented;
  struct Fault {
    const char* what;
    std::function<void(CheckpointBuilder&)> damage;
    absl::StatusCode code;
    std::string message;
  };
  const std::string m = kModule + ".";
  const auto number = [&](CheckpointBuilder& f, const char* name, int32_t value) {
    f.Add(m + name, StoredDType::kI32, {}, std::vector<int32_t>{value});
  };
  const auto flag = [&](CheckpointBuilder& f, const char* name, uint8_t value) {
    f.Add(m + name, StoredDType::kU8, {}, std::vector<uint8_t>{value});
  };
  const std::vector<Fault> table = {
      {"shape of W_q",
       [&](auto& f) {
         f.tensors[m + "W_q"].shape = {64, 8};
       },
       kLoss, "tensor model.layers.0.mlp.up_proj.W_q: U8 [64, 8], expected U8 [8, 64]"},
      {"dtype of W_q", [&](auto& f) { f.tensors[m + "W_q"].dtype = StoredDType::kI8; }, kLoss,
       "W_q: I8 [8, 64], expected U8 [8, 64]"},
      {"short W_q as float",
       [&](auto& f) {
         flag(f, "view_as_float", 1);
         f.Add(m + "W_q", StoredDType::kF16, {8, 31}, std::vector<uint16_t>(8 * 31));
       },
       kLoss, "W_q: F16 [8, 31] holds 496 bytes, 4bit_u8 of [16, 64] takes 512"},
      {"no scale", [&](auto& f) { f.tensors.erase(m + "scale"); }, kLoss,
       "scale F32 or F16 or BF16 [16, 1] is missing"},
      {"zero of another dtype",
       [&](auto& f) {
         f.AddFloats(m + "zero", DType::kF32, {16, 1}, std::vector<float>(16));
       },
       kLoss, "zero: F32 [16, 1], expected F16 [16, 1]"},
      {"no shape", [&](auto& f) { f.tensors.erase(m + "shape"); }, kLoss,
       "shape I64 [2] is missing"},
      {"another shape",
       [&](auto& f) {
         f.Add(m + "shape", StoredDType::kI64, {2}, std::vector<int64_t>{64, 16});
       },
       kLoss, "shape is [64, 16], config.json says [16, 64]"},
      {"no nbits", [&](auto& f) { f.tensors.erase(m + "nbits"); }, kLoss, "nbits is missing"},
      {"nbits against packing", [&](auto& f) { number(f, "nbits", 3); }, kLoss,
       "nbits: 3 with packing 4bit_u8"},
      {"axis", [&](auto& f) { number(f, "axis", 2); }, kLoss, "axis: 2 is not 0 or 1"},
      {"group_size", [&](auto& f) { number(f, "group_size", 48); }, kLoss,
       "group_size: 48 does not divide [16, 64]"},
      {"group_size of 0", [&](auto& f) { number(f, "group_size", 0); }, kLoss,
       "group_size: 0 does"},
      {"odd rows", [&](auto& f) { number(f, "group_size", 1024); }, kLoss,
       "1 rows of groups are not a multiple of the 2 of 4bit_u8"},
      {"packing", [&](auto& f) { AddText(f, m + "packing", "4bit_32"); }, kNot,
       "packing: \"4bit_32\" is not one of 8bit_u8, 4bit_u8"},
      {"a flag of floats", [&](auto& f) { f.AddFloats(m + "quant_zero", DType::kF32, {}, {0.0f}); },
       kLoss, "quant_zero: F32 [], expected U8 []"},
      {"quantized zeros", [&](auto& f) { flag(f, "quant_zero", 1); }, kNot,
       "quant_zero: 1 is not supported: quantized scales"},
      {"quantized scales", [&](auto& f) { flag(f, "quant_scale", 1); }, kNot,
       "quant_scale: 1 is not"},
      {"offloaded", [&](auto& f) { flag(f, "offload_meta", 1); }, kNot, "offload_meta: 1 is not"},
      {"one scale", [&](auto& f) { flag(f, "channel_wise", 0); }, kNot, "channel_wise: 0 is not"},
      {"NaN scale",
       [&](auto& f) {
         const uint16_t nan = 0x7e00;
         std::memcpy(f.tensors[m + "scale"].bytes.data() + 4, &nan, 2);
       },
       kLoss, "up_proj.scale: element 2 is nan"},
      {"negative scale",
       [&](auto& f) {
         const uint16_t minus_one = 0xbc00;
         std::memcpy(f.tensors[m + "scale"].bytes.data(), &minus_one, 2);
       },
       kLoss, "up_proj.scale: element 0 is -1"},
      {"infinite zero",
       [&](auto& f) {
         const uint16_t infinity = 0x7c00;
         std::memcpy(f.tensors[m + "zero"].bytes.data() + 2, &infinity, 2);
       },
       kLoss, "up_proj.zero: element 1 is inf"},
  };
  for (const Fault& fault : table) {
    Random random(11);
    CheckpointBuilder file;
    AddHqq(file, RandomHqq(random, 16, 64, 64, 1, 4, DType::kF16));
    fault.damage(file);
    const auto matrix = Import(*file.Open(), {kModule, 16, 64}, Config(kConfig));
    EXPECT_EQ(matrix.status().code(), fault.code) << fault.what << ": " << matrix.status();
    EXPECT_THAT(Message(matrix.status()), HasSubstr(fault.message)) << fault.what;
  }
}

// What the tensors say of themselves is compared with what config.json says of them.
TEST(Hqq, TheConfigIsComparedWithTheTensors) {
  const auto read = [](const std::string& config, int64_t group = 32, int axis = 1) {
    Random random(5);
    CheckpointBuilder file;
    AddHqq(file, RandomHqq(random, 16, 64, group, axis, 4, DType::kF16));
    return Import(*file.Open(), {kModule, 16, 64}, Config(config)).status();
  };
  EXPECT_TRUE(read(ConfigText(4, "32", 1)).ok());
  EXPECT_TRUE(read(ConfigText(4, "null", 1), 64).ok()) << "null: a group of all inputs";
  EXPECT_TRUE(read(ConfigText(4, "null", 0), 16, 0).ok()) << "null: a group of all outputs";
  const std::string by_tag = R"({"quant_method": "hqq", "quant_config": {
      "self_attn.q_proj": {"weight_quant_params": {"nbits": 8, "group_size": 64, "axis": 0}},
      "mlp.up_proj": {"weight_quant_params": {"nbits": 4, "group_size": 32, "axis": 1}}}})";
  EXPECT_TRUE(read(by_tag).ok());
  const std::string without =
      R"({"quant_method": "hqq", "quant_config": {"p_proj": {"weight_quant_params": {"nbits": 4}}}})";
  const std::pair<std::string, const char*> faults[] = {
      {ConfigText(2, "32", 1), "up_proj.nbits: is 4, config.json says 2"},
      {ConfigText(4, "64", 1), "up_proj.group_size: is 32, config.json says 64"},
      {ConfigText(4, "null", 1), "up_proj.group_size: is 32, config.json says 64"},
      {ConfigText(4, "32", 0), "up_proj.axis: is 1, config.json says 0"},
      {without, "up_proj: is stored as hqq, but no linear tag of config.json's"},
  };
  for (const auto& [config, message] : faults) {
    const absl::Status status = read(config);
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(message)) << config;
  }
}

TEST(Hqq, CodesOfFewerBitsThanTheirByteAreChecked) {
  for (const int bits : {5, 6, 7}) {
    Random random(5);
    CheckpointBuilder file;
    AddHqq(file, RandomHqq(random, 16, 64, 64, 1, bits, DType::kF16));
    const MethodOptions config = Config(ConfigText(bits, "64", 1));
    EXPECT_TRUE(Import(*file.Open(), {kModule, 16, 64}, config).ok());
    file.tensors.at(kModule + ".W_q").bytes[7] = static_cast<char>(1 << bits);
    const absl::Status status = Import(*file.Open(), {kModule, 16, 64}, config).status();
    EXPECT_TRUE(absl::IsDataLoss(status)) << status;
    EXPECT_THAT(Message(status), HasSubstr(fmt::format("W_q: element 7 is {}, which {} bits do not",
                                                       1 << bits, bits)));
  }
}

TEST(Hqq, ReadsTheConfigsThatTransformersWrote) {
  EXPECT_EQ(Describe(Config(kConfig)), "hqq 4-bit, group_size 64, axis 1");
  const auto by_tag = TryConfig(R"({"quant_method": "hqq", "quant_config": {
      "self_attn.q_proj": {"weight_quant_params": {"nbits": 4}, "scale_quant_params": null}},
      "skip_modules": ["lm_head"]})");
  EXPECT_TRUE(by_tag.ok()) << by_tag.status();
  const auto quantized = TryConfig(R"({"quant_method": "hqq", "quant_config": {
      "self_attn.q_proj": {"weight_quant_params": {"nbits": 4}, "zero_quant_params": {"nbits": 8}}}})");
  EXPECT_TRUE(absl::IsUnimplemented(quantized.status())) << quantized.status();
  EXPECT_THAT(Message(quantized.status()),
              HasSubstr("quantization_config.quant_config.self_attn.q_proj.zero_quant_params: "
                        "quantized scales are not supported"));
}

// ---- on load

MethodOptions Profile(const std::string& keys) {
  auto profile = ParseProfile("quantization: {quant_method: hqq" + keys + "}", "x.yaml");
  EXPECT_TRUE(profile.ok()) << profile.status();
  return profile.ok() ? profile->quantization : MethodOptions();
}

std::vector<float> Normal(Random& random, int64_t count, float deviation) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    const float u = random.Float(1e-7f, 1.0f), v = random.Float(0.0f, 6.2831853f);
    values.push_back(deviation * std::sqrt(-2.0f * std::log(u)) * std::cos(v));
  }
  return values;
}

double MeanError(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::fabs(static_cast<double>(a[i]) - b[i]);
  return sum / static_cast<double>(a.size());
}

// hqq and quantd choose from the same weights: the fixtures were made on a CPU in float32 from
// llama_bf16. Only sums may round differently, which moves a code that lies at a tie.
TEST(HqqOnLoad, ChoosesTheLibrarysCodesScalesAndZeros) {
  struct Row {
    const char* fixture;
    const char* keys;
  };
  const Row table[] = {{"hqq4_axis1", ", nbits: 4"},
                       {"hqq4_axis0", ", nbits: 4, axis: 0"},
                       {"hqq8_axis1", ", nbits: 8"},
                       {"hqq3_axis1", ", nbits: 3"},
                       {"hqq2_axis0", ", nbits: 2, axis: 0, group_size: 16"}};
  auto base = Checkpoint::Open(kHqqFixtures / "llama_bf16");
  ASSERT_TRUE(base.ok()) << base.status();
  for (const Row& row : table) {
    auto stored = Checkpoint::Open(kHqqFixtures / row.fixture);
    const auto config = ReadQuantizationConfig(kHqqFixtures / row.fixture);
    ASSERT_TRUE(stored.ok() && config.ok()) << stored.status() << config.status();
    const MethodOptions options = Profile(row.keys);
    int modules = 0;
    for (const auto& [name, tensor] : (*base)->tensors()) {
      const std::string module = name.substr(0, name.rfind('.'));
      if ((*stored)->Find(module + ".W_q") == nullptr) continue;
      const WeightShape shape{module, tensor.shape[0], tensor.shape[1]};
      const auto theirs = Import(**stored, shape, **config);
      ASSERT_TRUE(theirs.ok()) << theirs.status();
      std::vector<BF16> values(tensor.data.size() / 2);
      std::memcpy(values.data(), tensor.data.data(), tensor.data.size());
      const TensorView w(DType::kBF16, values.data(), shape.n, shape.k);
      ASSERT_TRUE(HqqMethod().CheckShape(shape, options).ok());
      const auto ours = HqqMethod().Quantize(w, options, DType::kF32);
      ASSERT_TRUE(ours.ok()) << ours.status();
      EXPECT_EQ(ours->format, HqqMethod().FormatOf(shape, options, DType::kF32));
      EXPECT_EQ(ours->format, theirs->format) << ours->format.ToString();
      EXPECT_EQ(ours->codes, theirs->codes) << row.fixture << " " << module;
      EXPECT_EQ(NumDifferent(ours->scales, theirs->scales), 0u) << row.fixture << " " << module;
      EXPECT_EQ(NumDifferent(ours->zeros, theirs->zeros), 0u) << row.fixture << " " << module;
      ++modules;
    }
    EXPECT_EQ(modules, 7) << row.fixture;
  }
}

/// The solver as its formulas say, with sums in double.
QuantizedMatrix Reference(const std::vector<float>& w, int64_t n, int64_t k, int bits,
                          int64_t group, int axis) {
  const int64_t count = n * k / group;
  const auto at = [&](int64_t g, int64_t e) {
    return static_cast<size_t>(axis == 1 ? g * group + e : e * count + g);
  };
  const float top = static_cast<float>((1 << bits) - 1);
  QuantizedMatrix m;
  for (int64_t g = 0; g < count; ++g) {
    float low = w[at(g, 0)], high = low;
    for (int64_t e = 0; e < group; ++e) {
      low = std::min(low, w[at(g, e)]);
      high = std::max(high, w[at(g, e)]);
    }
    m.scales.push_back(high - low <= 1e-4f ? 1.0f : std::min(1.0f / (high - low) * top, 2e4f));
    m.zeros.push_back(bits == 4 ? std::rint(-low * m.scales.back()) : -low * m.scales.back());
  }
  const auto code_of = [&](int64_t g, int64_t e) {
    const size_t i = static_cast<size_t>(g);
    return std::clamp(std::rint(w[at(g, e)] * m.scales[i] + m.zeros[i]), 0.0f, top);
  };
  double best = HUGE_VAL;
  for (int step = 0; step < 20; ++step) {
    double error = 0;
    for (int64_t g = 0; g < count; ++g) {
      const size_t i = static_cast<size_t>(g);
      const float scale = m.scales[i];
      double sum = 0;
      for (int64_t e = 0; e < group; ++e) {
        const float code = code_of(g, e);
        const float x = w[at(g, e)] - (code - m.zeros[i]) / scale;
        error += std::fabs(x);
        const float shrunk =
            std::copysign(std::max(std::fabs(x) - 0.1f * std::pow(std::fabs(x), -0.3f), 0.0f), x);
        sum += code - (w[at(g, e)] - shrunk) * scale;
      }
      m.zeros[i] = static_cast<float>(sum / static_cast<double>(group));
    }
    if (!(static_cast<float>(error / static_cast<double>(n * k)) < best)) break;
    best = static_cast<float>(error / static_cast<double>(n * k));
  }
  m.codes.resize(w.size());
  for (int64_t g = 0; g < count; ++g) {
    for (int64_t e = 0; e < group; ++e) m.codes[at(g, e)] = static_cast<uint8_t>(code_of(g, e));
  }
  return m;
}

// Every branch of the vectorized solver: lanes left over, groups left over, errors that shrink.
TEST(HqqOnLoad, TheSolverDoesWhatItsFormulasSay) {
  Random random(41);
  int different = 0, total = 0;
  for (int i = 0; i < 60; ++i) {
    const int bits = random.Of<int>({2, 3, 4, 8}), axis = static_cast<int>(random.Integer(0, 1));
    const int64_t group = random.Of<int64_t>({8, 16, 24, 40, 64, 128});
    const int64_t n = group, k = random.Integer(1, 40);
    const float deviation = random.Of<float>({0.02f, 1.0f, 30.0f});
    std::vector<float> values = Normal(random, n * k, deviation);
    const auto got = HqqMethod().Quantize(
        TensorView(DType::kF32, values.data(), n, k),
        Profile(fmt::format(", nbits: {}, axis: {}, group_size: {}", bits, axis, group)),
        DType::kF32);
    ASSERT_TRUE(got.ok()) << got.status();
    QuantizedMatrix want = Reference(values, n, k, bits, group, axis);
    for (size_t j = 0; j < want.scales.size(); ++j) {
      EXPECT_EQ(got->scales[j], 1.0f / want.scales[j]);
      EXPECT_NEAR(got->zeros[j], want.zeros[j], 1e-3f * static_cast<float>(1 << bits));
    }
    for (size_t j = 0; j < want.codes.size(); ++j)
      different += got->codes[j] != want.codes[j] ? 1 : 0;
    total += static_cast<int>(want.codes.size());
  }
  // Sums round differently, so that a code at a tie may fall to the other side.
  EXPECT_LT(different, total / 1000) << "of " << total;
}

TEST(HqqOnLoad, TheSolverBeatsTheExtremes) {
  Random random(43);
  std::vector<float> values = Normal(random, 64 * 256, 0.05f);
  const TensorView w(DType::kF32, values.data(), 64, 256);
  for (const int bits : {2, 3, 4}) {
    for (const int axis : {0, 1}) {
      const std::string keys = fmt::format(", nbits: {}, axis: {}", bits, axis);
      const auto solved = HqqMethod().Quantize(w, Profile(keys), DType::kF32);
      const auto extremes = HqqMethod().Quantize(
          w,
          Profile(fmt::format(", quant_config: {{weight_quant_params: {{nbits: {}, axis: {}, "
                              "optimize: false}}}}",
                              bits, axis)),
          DType::kF32);
      ASSERT_TRUE(solved.ok() && extremes.ok()) << solved.status() << extremes.status();
      EXPECT_LT(MeanError(solved->DequantizeAll(), values),
                MeanError(extremes->DequantizeAll(), values))
          << keys;
    }
  }
}

TEST(HqqOnLoad, ScalesAndZerosAreOfTheComputeDType) {
  Random random(47);
  std::vector<float> values = Normal(random, 32 * 128, 0.05f);
  const TensorView w(DType::kF32, values.data(), 32, 128);
  const MethodOptions options = Profile(", nbits: 4");
  const auto f32 = HqqMethod().Quantize(w, options, DType::kF32);
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    const auto got = HqqMethod().Quantize(w, options, dtype);
    ASSERT_TRUE(got.ok() && f32.ok()) << got.status();
    EXPECT_EQ(got->format.ToString(),
              dtype == DType::kBF16 ? "uint4.flat64.bf16.zero_bf16" : "uint4.flat64.f16.zero_f16");
    EXPECT_EQ(got->codes, f32->codes);
    for (size_t i = 0; i < got->scales.size(); ++i) {
      EXPECT_EQ(got->scales[i], Rounded(dtype, f32->scales[i]));
      EXPECT_EQ(got->zeros[i], Rounded(dtype, f32->zeros[i]));
    }
  }
}

TEST(HqqOnLoad, TakesEqualWeightsAndRefusesWhatDoesNotFit) {
  const MethodOptions options = Profile(", nbits: 4, group_size: 8");
  std::vector<float> flat(64, 0.0f);
  const auto zeros =
      HqqMethod().Quantize(TensorView(DType::kF32, flat.data(), 8, 8), options, DType::kF16);
  ASSERT_TRUE(zeros.ok()) << zeros.status();
  EXPECT_THAT(zeros->DequantizeAll(), ::testing::Each(0.0f));
  std::fill(flat.begin(), flat.end(), -1e5f);  // its zero point is 1e5
  const auto fault =
      HqqMethod().Quantize(TensorView(DType::kF32, flat.data(), 8, 8), options, DType::kF16);
  EXPECT_TRUE(absl::IsInvalidArgument(fault.status())) << fault.status();
  EXPECT_THAT(Message(fault.status()),
              HasSubstr("a scale or zero point of hqq does not fit float16"));
  const absl::Status shape = HqqMethod().CheckShape({"m", 3, 5}, options);
  EXPECT_THAT(Message(shape), HasSubstr("[3, 5] is not a multiple of group_size 8"));
  EXPECT_TRUE(HqqMethod().CheckShape({"m", 4, 6}, options).ok()) << "a group may cross rows";
}

TEST(HqqOnLoad, ReadsHqqConfigAndWhatItWrites) {
  const auto yaml = [](const std::string& keys) {
    const MethodOptions options = Profile(keys);
    return options.settings == nullptr ? "" : options.settings->ToYaml();
  };
  EXPECT_EQ(yaml(""), "nbits: 4\ngroup_size: 64\naxis: 1\n");
  EXPECT_EQ(yaml(", nbits: 2, group_size: 16, axis: 0, view_as_float: true"),
            "nbits: 2\ngroup_size: 16\naxis: 0\n");
  EXPECT_EQ(yaml(", group_size: null"), "nbits: 4\ngroup_size: null\naxis: 1\n");
  EXPECT_EQ(
      yaml(", quant_config: {weight_quant_params: {nbits: 3, channel_wise: true, group_size: 32, "
           "optimize: true, round_zero: false, axis: 1, view_as_float: false}, "
           "scale_quant_params: null, zero_quant_params: null, offload_meta: false}, "
           "skip_modules: [lm_head]"),
      "nbits: 3\ngroup_size: 32\naxis: 1\n");
  EXPECT_EQ(yaml(", nbits: 4, round_zero: false, optimize: false"),
            "nbits: 4\ngroup_size: 64\naxis: 1\noptimize: false\nround_zero: false\n");
  // As many as inputs, or outputs.
  const MethodOptions whole = Profile(", group_size: null, axis: 0");
  EXPECT_EQ(HqqMethod().FormatOf({"m", 24, 40}, whole, DType::kBF16).ToString(),
            "uint4.strided24.bf16.zero_bf16");
}

TEST(HqqOnLoad, NamesEveryFaultOfAProfile) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  constexpr auto kNot = absl::StatusCode::kUnimplemented;
  struct Row {
    const char* keys;
    absl::StatusCode code;
    const char* message;
  };
  const Row table[] = {
      {"nbits: 1", kNot, "quantization.nbits: 1 is not supported; supported: 8, 4, 3, 2"},
      {"nbits: 6", kNot, "nbits: 6 is not supported"},
      {"nbits: 1.58", kBad, "nbits: \"1.58\" is not an integer from 1 to 8"},
      {"group_size: 12", kBad, "group_size: 12 is not a multiple of 8"},
      {"group_size: -1", kBad, "group_size: \"-1\" is not an integer from 8"},
      {"axis: 2", kBad, "axis: \"2\" is not an integer from 0 to 1"},
      {"bits: 4", kBad, "quantization.bits: unknown key; the nearest known one is \"nbits\""},
      {"dynamic_config: {self_attn.q_proj: {nbits: 4}}", kNot,
       "dynamic_config: not supported; instead: the profile's overrides"},
      {"quant_config: {self_attn.q_proj: {weight_quant_params: {nbits: 4}}}", kNot,
       "quant_config: has no weight_quant_params; for a config by linear tag: the profile's "
       "overrides"},
      {"nbits: 4, quant_config: {weight_quant_params: {nbits: 4}}", kBad,
       "quantization.nbits: stands beside quant_config, which has it too"},
      {"quant_config: {weight_quant_params: {nbits: 4}, scale_quant_params: {nbits: 8}}", kNot,
       "quant_config.scale_quant_params: quantized scales are not supported; supported: null"},
      {"quant_config: {weight_quant_params: {nbits: 4, channel_wise: false}}", kNot,
       "weight_quant_params.channel_wise: false is not supported"},
      {"quant_config: {weight_quant_params: {bits: 4}}", kBad,
       "quantization.quant_config.weight_quant_params.bits: unknown key"},
      {"skip_modules: ['(']", kBad, "skip_modules: \"(\" is not a regular expression"},
  };
  for (const Row& row : table) {
    const auto profile =
        ParseProfile(fmt::format("quantization: {{quant_method: hqq, {}}}", row.keys), "x.yaml");
    EXPECT_EQ(profile.status().code(), row.code) << row.keys << ": " << profile.status();
    EXPECT_THAT(Message(profile.status()), HasSubstr(row.message)) << row.keys;
  }
}

}  // namespace
}  // namespace quantd

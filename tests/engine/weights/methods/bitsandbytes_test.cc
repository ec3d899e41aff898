// bitsandbytes checkpoints: random linears of a packer of our own, in every block size, storage
// dtype and width. The fixtures and the faults: golden_test.cc and broken_folder_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/engine/weights/methods/checkpoint_builder.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::CheckpointBuilder;
using testing_support::Config;
using testing_support::ExpectComesBack;
using testing_support::Import;
using testing_support::kModule;
using testing_support::Random;

// As quant_map holds them.
constexpr float kNf4[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};
constexpr float kFp4Twelfths[8] = {0.0f, 0.0625f, 8.0f, 12.0f, 4.0f, 6.0f, 2.0f, 3.0f};

std::vector<float> QuantMap(const std::string& type) {
  if (type == "nf4") return std::vector<float>(std::begin(kNf4), std::end(kNf4));
  std::vector<float> map;
  for (const float sign : {1.0f, -1.0f}) {
    for (const float v : kFp4Twelfths) map.push_back(sign * (v / 12.0f));
  }
  return map;
}

// bnb_4bit_quant_storage, and how safetensors spells it.
struct Storage {
  const char* name;
  StoredDType dtype;
  int64_t bytes;
};
constexpr Storage kStorages[] = {
    {"uint8", StoredDType::kU8, 1},      {"int8", StoredDType::kI8, 1},
    {"int16", StoredDType::kI16, 2},     {"int32", StoredDType::kI32, 4},
    {"int64", StoredDType::kI64, 8},     {"float16", StoredDType::kF16, 2},
    {"bfloat16", StoredDType::kBF16, 2}, {"float32", StoredDType::kF32, 4},
    {"float64", StoredDType::kF64, 8},
};

struct Linear4 {
  std::string type = "nf4";
  int64_t n = 0, k = 0, block = 64;
  bool nested = false;
  std::vector<int> codes;     // [n * k], rows one after the other
  std::vector<float> absmax;  // [blocks]; nested: of what the four below mean
  std::vector<uint8_t> nested_codes;
  std::vector<float> nested_map, nested_absmax;
  float nested_offset = 0.0f;

  int64_t blocks() const { return (n * k + block - 1) / block; }
  std::vector<float> Weights() const {
    const std::vector<float> map = QuantMap(type);
    std::vector<float> w;
    for (size_t i = 0; i < codes.size(); ++i) {
      w.push_back(map[static_cast<size_t>(codes[i])] * absmax[i / static_cast<size_t>(block)]);
    }
    return w;
  }
  std::string ConfigText(const Storage& storage) const {
    return fmt::format(
        R"({{"quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "{}",
             "bnb_4bit_use_double_quant": {}, "bnb_4bit_quant_storage": "{}"}})",
        type, nested, storage.name);
  }
};

Linear4 RandomLinear4(Random& random) {
  Linear4 l;
  l.type = random.Of<std::string>({"nf4", "fp4"});
  l.n = random.Integer(1, 120);
  l.k = random.Integer(1, 200);
  l.block = random.Of<int64_t>({32, 64, 128, 256, 512, 1024, 2048, 4096});
  l.nested = random.Integer(0, 1) == 0;
  for (int64_t i = 0; i < l.n * l.k; ++i)
    l.codes.push_back(static_cast<int>(random.Integer(0, 15)));
  if (!l.nested) {
    for (int64_t b = 0; b < l.blocks(); ++b) l.absmax.push_back(random.Float(0.0f, 0.3f));
    return l;
  }
  l.nested_offset = random.Float(0.1f, 0.3f);
  for (int i = 0; i < 256; ++i) l.nested_map.push_back(random.Float(-1.0f, 1.0f));
  for (int64_t b = 0; b < l.blocks(); b += 256) l.nested_absmax.push_back(random.Float(0.0f, 0.1f));
  for (int64_t b = 0; b < l.blocks(); ++b) {
    l.nested_codes.push_back(static_cast<uint8_t>(random.Integer(0, 255)));
    // Two roundings: the product is one float, the sum the next.
    volatile float product =
        l.nested_map[l.nested_codes.back()] * l.nested_absmax[static_cast<size_t>(b / 256)];
    l.absmax.push_back(product + l.nested_offset);
  }
  return l;
}

void AddLinear4(CheckpointBuilder& file, const Linear4& l, const Storage& storage) {
  const std::string weight = kModule + ".weight";
  const int64_t count = l.n * l.k;
  // What is beyond the last code is filled with what no reader may look at.
  const int64_t units = ((count + 1) / 2 + storage.bytes - 1) / storage.bytes;
  std::vector<uint8_t> packed(static_cast<size_t>(units * storage.bytes), 0xee);
  for (int64_t i = 0; i < count; ++i) {
    uint8_t& byte = packed[static_cast<size_t>(i / 2)];
    const int code = l.codes[static_cast<size_t>(i)];
    byte = static_cast<uint8_t>(i % 2 == 0 ? code * 16 + 14 : byte / 16 * 16 + code);
  }
  file.Add(weight, storage.dtype, {units, 1}, packed);
  file.Add(weight + ".quant_map", StoredDType::kF32, {16}, QuantMap(l.type));
  std::string state = fmt::format(
      R"({{"quant_type": "{}", "blocksize": {}, "dtype": "bfloat16", "shape": [{}, {}])", l.type,
      l.block, l.n, l.k);
  if (l.nested) {
    file.Add(weight + ".absmax", StoredDType::kU8, {l.blocks()}, l.nested_codes);
    file.Add(weight + ".nested_absmax", StoredDType::kF32,
             {static_cast<int64_t>(l.nested_absmax.size())}, l.nested_absmax);
    file.Add(weight + ".nested_quant_map", StoredDType::kF32, {256}, l.nested_map);
    state +=
        fmt::format(R"(, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": {})",
                    static_cast<double>(l.nested_offset));
  } else {
    file.Add(weight + ".absmax", StoredDType::kF32, {l.blocks()}, l.absmax);
  }
  state += "}";
  file.Add(weight + ".quant_state.bitsandbytes__" + l.type, StoredDType::kU8,
           {static_cast<int64_t>(state.size())}, std::vector<uint8_t>(state.begin(), state.end()));
}

TEST(BitsAndBytes, Random4BitLinearsComeBackBitForBit) {
  Random random(41);
  std::set<std::string> seen;
  for (int i = 0; i < 180; ++i) {
    const Linear4 l = RandomLinear4(random);
    const Storage& storage = kStorages[i % std::size(kStorages)];
    SCOPED_TRACE(
        fmt::format("{} {} {} blocks of {} in {}", l.type, l.n, l.k, l.block, storage.name));
    CheckpointBuilder file;
    AddLinear4(file, l, storage);
    const WeightSource source =
        ExpectComesBack(file, {kModule, l.n, l.k}, l.ConfigText(storage), l.Weights());
    EXPECT_EQ(source.format.ToString(),
              fmt::format("{}.flat{}.{}", l.type, l.block, l.nested ? "nested" : "f32"));
    const int64_t count = l.n * l.k;
    seen.insert(storage.name);
    if (count % 2 != 0) seen.insert("half a byte is left");
    if ((count + 1) / 2 % storage.bytes != 0) seen.insert(std::string(storage.name) + " padded");
    if (l.k % l.block != 0 && l.blocks() > 1) seen.insert("blocks cross rows");
    if (l.blocks() > 256 && l.nested) seen.insert("two nested blocks");
  }
  EXPECT_THAT(seen, ::testing::IsSupersetOf({"half a byte is left", "blocks cross rows",
                                             "two nested blocks", "int16 padded", "int64 padded",
                                             "float32 padded", "bfloat16 padded"}));
  for (const Storage& storage : kStorages) EXPECT_EQ(seen.count(storage.name), 1u) << storage.name;
}

// One unit more or less than the codes fill is not padding.
TEST(BitsAndBytes, OtherPaddingIsAFault) {
  Random random(43);
  Linear4 l = RandomLinear4(random);
  while (l.nested) l = RandomLinear4(random);
  const Storage& storage = kStorages[4];
  for (const int units : {-1, 1}) {
    CheckpointBuilder file;
    AddLinear4(file, l, storage);
    auto& codes = file.tensors.at(kModule + ".weight");
    codes.shape[0] += units;
    codes.bytes.resize(static_cast<size_t>(codes.shape[0] * storage.bytes));
    const auto matrix = Import(*file.Open(), {kModule, l.n, l.k}, Config(l.ConfigText(storage)));
    EXPECT_TRUE(absl::IsDataLoss(matrix.status())) << matrix.status();
    EXPECT_THAT(Message(matrix.status()), HasSubstr("bytes, 4-bit ["));
  }
}

TEST(BitsAndBytes, Random8BitLinearsComeBackBitForBit) {
  constexpr char kConfig[] = R"({"quant_method": "bitsandbytes", "load_in_8bit": true})";
  Random random(47);
  for (int i = 0; i < 40; ++i) {
    const int64_t n = random.Integer(1, 60), k = random.Integer(1, 150);
    std::vector<int8_t> codes;
    std::vector<float> scb, weights;
    for (int64_t o = 0; o < n; ++o) {
      scb.push_back(random.Float(0.0f, 2.0f));
      for (int64_t j = 0; j < k; ++j) {
        codes.push_back(static_cast<int8_t>(random.Integer(-127, 127)));
        weights.push_back(static_cast<float>(codes.back()) * (scb.back() * (1.0f / 127.0f)));
      }
    }
    CheckpointBuilder file;
    file.Add(kModule + ".weight", StoredDType::kI8, {n, k}, codes);
    file.Add(kModule + ".SCB", StoredDType::kF32, {n}, scb);
    if (i % 2 == 0) {
      file.Add(kModule + ".weight_format", StoredDType::kU8, {}, std::vector<uint8_t>{0});
    }
    const WeightSource source = ExpectComesBack(file, {kModule, n, k}, kConfig, weights);
    EXPECT_EQ(source.format, QuantFormat::Int8Row());
    EXPECT_EQ(source.activation.kind, ActivationQuant::Kind::kInt8Outlier);
  }
}

}  // namespace
}  // namespace quantd

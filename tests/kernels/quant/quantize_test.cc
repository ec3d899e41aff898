// The quantizers against what bitsandbytes 0.50 made of the same weights (tests/data/models/bnb_*),
// and their edge cases.
#include "kernels/quant/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "tests/kernels/quant/fixture_tensors.h"

namespace quantd {
namespace {

using testing::FixtureTensor;
using testing::FixtureTensors;
using testing::NestedOffsetOf;
using testing::ReadDynamicMapFixture;
using testing::ReadFixture;

/// The names of the linears of the small Llama, without ".weight".
std::vector<std::string> LinearModules() {
  std::vector<std::string> modules;
  for (const char* m : {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                        "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}) {
    modules.push_back(std::string("model.layers.0.") + m);
  }
  return modules;
}

TensorView ViewOf(FixtureTensor& t, DType dtype) {
  return TensorView(dtype, t.bytes.data(), t.shape[0], t.shape[1]);
}

TensorView ViewOf(std::vector<float>& values, int64_t rows) {
  return TensorView(DType::kF32, values.data(), rows, static_cast<int64_t>(values.size()) / rows);
}

/// Codes two a byte, even element in the high nibble, as bitsandbytes stores them.
std::vector<uint8_t> Nibbles(const std::vector<uint8_t>& codes) {
  std::vector<uint8_t> bytes((codes.size() + 1) / 2);
  for (size_t i = 0; i < codes.size(); ++i) {
    bytes[i / 2] = static_cast<uint8_t>(bytes[i / 2] | (i % 2 == 0 ? codes[i] << 4 : codes[i]));
  }
  return bytes;
}

std::vector<float> RandomFloats(size_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& v : values) v = normal(random);
  return values;
}

class Block4Fixture : public ::testing::TestWithParam<std::pair<const char*, Codec>> {};

TEST_P(Block4Fixture, CodesAndScalesEqualThoseOfBitsandbytesToTheByte) {
  const auto [model, codec] = GetParam();
  FixtureTensors plain = ReadFixture("llama_bf16");
  const FixtureTensors quantized = ReadFixture(model);
  for (const std::string& module : LinearModules()) {
    SCOPED_TRACE(module);
    const QuantizedMatrix q =
        QuantizeBlock4(ViewOf(plain.at(module + ".weight"), DType::kBF16), codec, 64);
    EXPECT_EQ(q.scales, quantized.at(module + ".weight.absmax").As<float>());
    EXPECT_TRUE(Nibbles(q.codes) == quantized.at(module + ".weight").bytes);
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, Block4Fixture,
                         ::testing::Values(std::pair{"bnb_nf4", Codec::kNf4},
                                           std::pair{"bnb_fp4", Codec::kFp4}),
                         [](const auto& test) { return test.param.first; });

TEST(QuantizeInt8Rows, CodesAndScalesEqualThoseOfBitsandbytesToTheByte) {
  FixtureTensors plain = ReadFixture("llama_bf16");
  const FixtureTensors quantized = ReadFixture("bnb_int8");
  for (const std::string& module : LinearModules()) {
    SCOPED_TRACE(module);
    const QuantizedMatrix q = QuantizeInt8Rows(ViewOf(plain.at(module + ".weight"), DType::kBF16));
    EXPECT_EQ(q.scales, quantized.at(module + ".SCB").As<float>());
    EXPECT_TRUE(q.codes == quantized.at(module + ".weight").bytes);
  }
}

TEST(NestScales, ScalesEqualThoseOfBitsandbytesUpToOneStepOfTheMap) {
  FixtureTensors plain = ReadFixture("llama_bf16");
  const FixtureTensors quantized = ReadFixture("bnb_nf4_dq");
  size_t different = 0, total = 0;
  for (const std::string& module : LinearModules()) {
    SCOPED_TRACE(module);
    const std::string name = module + ".weight";
    QuantizedMatrix q = QuantizeBlock4(ViewOf(plain.at(name), DType::kBF16), Codec::kNf4, 64);
    NestScales(q);
    EXPECT_EQ(q.format.ToString(), "nf4.flat64.nested");
    EXPECT_EQ(q.nested_map, quantized.at(name + ".nested_quant_map").As<float>());
    EXPECT_TRUE(Nibbles(q.codes) == quantized.at(name).bytes);
    // The mean of the scales depends on the order of additions in its last bits.
    const float offset = NestedOffsetOf(quantized.at(name + ".quant_state.bitsandbytes__nf4"));
    EXPECT_NEAR(q.nested_offset, offset, 4e-7f * offset);
    const std::vector<float> absmax = quantized.at(name + ".nested_absmax").As<float>();
    ASSERT_EQ(q.nested_absmax.size(), absmax.size());
    for (size_t i = 0; i < absmax.size(); ++i)
      EXPECT_NEAR(q.nested_absmax[i], absmax[i], 4e-7f * offset);
    // bitsandbytes' own kernel is not exactly nearest: neighbours of the same distance, to an ulp
    // or so.
    const std::vector<uint8_t>& codes = quantized.at(name + ".absmax").bytes;
    ASSERT_EQ(q.nested_codes.size(), codes.size());
    for (size_t i = 0; i < codes.size(); ++i) {
      different += q.nested_codes[i] != codes[i];
      EXPECT_LE(std::abs(int{q.nested_codes[i]} - int{codes[i]}), 1) << "scale " << i;
    }
    total += codes.size();
  }
  EXPECT_LE(different * 200, total) << different << " of " << total;
}

TEST(NestScales, TakesTheNearestEntryOfTheMap) {
  std::vector<float> values = RandomFloats(64 * 1000, 3);
  QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 1000), Codec::kFp4, 64);
  const std::vector<float> scales = q.scales;
  NestScales(q);
  ASSERT_EQ(q.nested_absmax.size(), 4u);
  for (size_t i = 0; i < scales.size(); ++i) {
    const double absmax = q.nested_absmax[i / 256];
    const double wanted = double{scales[i]} - q.nested_offset;
    double nearest = 1e9;
    for (float entry : q.nested_map) nearest = std::min(nearest, std::abs(entry * absmax - wanted));
    EXPECT_NEAR(std::abs(q.nested_map[q.nested_codes[i]] * absmax - wanted), nearest, 1e-6);
  }
}

TEST(NestScales, KeepsEqualScalesExactly) {
  std::vector<float> values(64 * 300, 0.75f);
  QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 300), Codec::kNf4, 64);
  NestScales(q);
  EXPECT_EQ(q.nested_offset, 0.75f);
  for (int64_t r = 0; r < 300; ++r) EXPECT_EQ(q.Scale(r, 0), 0.75f);
}

TEST(DynamicMap, EqualsThatOfBitsandbytes) {
  EXPECT_EQ(DynamicMap().size(), 256u);
  EXPECT_EQ(DynamicMap(), ReadDynamicMapFixture());
}

/// A row whose largest magnitude is 1, so that its scaled values are its values: what
/// QuantizeBlock4's table must encode exactly as Codec::Encode does.
template <typename C>
void ExpectTableEqualsEncode() {
  std::vector<float> values = {1.0f};
  std::vector<float> levels;
  for (int code = 0; code < 16; ++code) levels.push_back(C::Decode(static_cast<uint8_t>(code)));
  std::sort(levels.begin(), levels.end());
  for (size_t i = 0; i + 1 < levels.size(); ++i) {
    float above = (levels[i] + levels[i + 1]) / 2, below = above;
    for (int step = 0; step < 5; ++step) {
      values.insert(values.end(), {above, below});
      above = std::nextafter(above, 2.0f);
      below = std::nextafter(below, -2.0f);
    }
  }
  values.insert(values.end(), {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-30f, -1e-30f, -1.0f});
  for (int i = -4100; i <= 4100; ++i) {  // both sides of every edge of the table's cells
    const float edge = std::clamp(static_cast<float>(i) / 4096.0f, -1.0f, 1.0f);
    values.insert(values.end(), {edge, std::nextafter(edge, 0.0f)});
  }
  std::mt19937 random(7);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (int i = 0; i < 200000; ++i) values.push_back(uniform(random));
  const int32_t block = static_cast<int32_t>(values.size());
  const QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 1), C::kCodec, block);
  ASSERT_EQ(q.scales, std::vector<float>{1.0f});
  size_t different = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    if (q.codes[i] == C::Encode(values[i])) continue;
    if (++different <= 10) {
      ADD_FAILURE() << values[i] << ": " << int{q.codes[i]}
                    << ", Encode: " << int{C::Encode(values[i])};
    }
  }
  EXPECT_EQ(different, 0u);
}

TEST(QuantizeBlock4, EncodesEveryNf4ValueAsTheCodecDoes) { ExpectTableEqualsEncode<Nf4Codec>(); }
TEST(QuantizeBlock4, EncodesEveryFp4ValueAsTheCodecDoes) { ExpectTableEqualsEncode<Fp4Codec>(); }

TEST(QuantizeBlock4, ZeroBlocksHaveScaleZeroAndDequantizeToZero) {
  std::vector<float> values(128, 0.0f);
  for (Codec codec : {Codec::kNf4, Codec::kFp4}) {
    const QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 2), codec, 64);
    EXPECT_EQ(q.scales, (std::vector<float>{0.0f, 0.0f}));
    EXPECT_THAT(q.codes, ::testing::Each(codec == Codec::kNf4 ? 7 : 0));
    EXPECT_EQ(q.Dequantize(1, 63), 0.0f);
  }
}

TEST(QuantizeBlock4, SmallPositiveFp4ValuesBecomeMinusZero) {
  std::vector<float> values = {1.0f, 0.002f, -0.002f, 0.0f};
  const QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 1), Codec::kFp4, 4);
  EXPECT_THAT(q.codes, ::testing::ElementsAre(3, 8, 0, 0));
}

TEST(QuantizeBlock4, BlocksCrossRowsAndTheLastMayBeShort) {
  std::vector<float> values = RandomFloats(5 * 72, 11);
  const QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 5), Codec::kNf4, 64);
  ASSERT_EQ(q.scales.size(), 6u);  // 360 elements: five blocks of 64 and one of 40
  for (size_t b = 0; b < 6; ++b) {
    float absmax = 0.0f;
    for (size_t i = b * 64; i < std::min<size_t>(360, b * 64 + 64); ++i) {
      absmax = std::max(absmax, std::fabs(values[i]));
    }
    EXPECT_EQ(q.scales[b], absmax) << "block " << b;
  }
  for (size_t i = 320; i < 360; ++i) {  // the short block divides
    EXPECT_EQ(q.codes[i], Nf4Codec::Encode(values[i] / q.scales[5])) << i;
  }
}

TEST(QuantizeBlock4, ReadsStridedRows) {
  std::vector<float> wide = RandomFloats(6 * 100, 5);
  const TensorView part = ViewOf(wide, 6).Cols(10, 72);
  std::vector<float> copy;
  for (int64_t r = 0; r < 6; ++r)
    copy.insert(copy.end(), part.Row<float>(r), part.Row<float>(r) + 72);
  EXPECT_EQ(QuantizeBlock4(part, Codec::kFp4, 64).codes,
            QuantizeBlock4(ViewOf(copy, 6), Codec::kFp4, 64).codes);
  EXPECT_EQ(QuantizeInt8Rows(part).codes, QuantizeInt8Rows(ViewOf(copy, 6)).codes);
  EXPECT_EQ(PlainMatrix(part, DType::kBF16).codes,
            PlainMatrix(ViewOf(copy, 6), DType::kBF16).codes);
}

TEST(QuantizeBlock4, NanBecomesACodeAndLeavesItsNeighboursAlone) {
  std::vector<float> values = {0.5f, NAN, -1.0f, 1.0f};
  const QuantizedMatrix q = QuantizeBlock4(ViewOf(values, 1), Codec::kNf4, 4);
  EXPECT_EQ(q.scales[0], 1.0f);
  EXPECT_EQ(q.codes[0], Nf4Codec::Encode(0.5f));
  EXPECT_LT(q.codes[1], 16);
  EXPECT_EQ(q.codes[3], 15);
}

TEST(QuantizeInt8Rows, RoundsHalfToEvenAndKeepsZeroRows) {
  // SCB 127 makes the factor 1, so the values are the codes before rounding.
  std::vector<float> values = {127.0f, 0.5f, 1.5f, -2.5f, 0.0f, 0.0f, 0.0f, 0.0f};
  const QuantizedMatrix q = QuantizeInt8Rows(ViewOf(values, 2));
  EXPECT_EQ(q.scales, (std::vector<float>{127.0f, 0.0f}));
  EXPECT_THAT(q.codes, ::testing::ElementsAre(127, 0, 2, 254, 0, 0, 0, 0));
  EXPECT_FLOAT_EQ(q.Dequantize(0, 0), 127.0f);
  EXPECT_EQ(q.Dequantize(1, 2), 0.0f);
}

TEST(QuantizeInt8Rows, TheErrorIsAtMostHalfAStep) {
  std::vector<float> values = RandomFloats(20 * 333, 2, 0.05f);
  const QuantizedMatrix q = QuantizeInt8Rows(ViewOf(values, 20));
  for (int64_t r = 0; r < 20; ++r) {
    const float step = q.scales[static_cast<size_t>(r)] / 127.0f;
    for (int64_t c = 0; c < 333; ++c) {
      const float w16 = static_cast<float>(F16(values[static_cast<size_t>(r * 333 + c)]));
      EXPECT_NEAR(q.Dequantize(r, c), w16, 0.50001f * step);
    }
  }
}

TEST(PlainMatrix, RoundsOnceToTheTargetType) {
  std::vector<float> values = RandomFloats(3 * 50, 9);
  const TensorView w = ViewOf(values, 3);
  const QuantizedMatrix f32 = PlainMatrix(w, DType::kF32), f16 = PlainMatrix(w, DType::kF16),
                        bf16 = PlainMatrix(w, DType::kBF16);
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t c = 0; c < 50; ++c) {
      const float v = values[static_cast<size_t>(r * 50 + c)];
      EXPECT_EQ(f32.Dequantize(r, c), v);
      EXPECT_EQ(f16.Dequantize(r, c), static_cast<float>(F16(v)));
      EXPECT_EQ(bf16.Dequantize(r, c), static_cast<float>(BF16(v)));
    }
  }
}

}  // namespace
}  // namespace quantd

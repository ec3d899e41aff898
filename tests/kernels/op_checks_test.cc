// What the ops refuse: weights by Status, wrong shapes by CHECK.
#include "kernels/op_checks.h"

#include <gtest/gtest.h>

#include "kernels/quant/quantize.h"
#include "kernels/ref/ref_backend.h"

namespace quantd {
namespace {

TEST(CheckCreatePacked, RefusesFormatsWhosePartsDoNotBelongTogether) {
  const BlockShape row{BlockShape::Kind::kRow, 0}, flat{BlockShape::Kind::kFlat, 64};
  const QuantFormat cases[] = {
      {Codec::kBF16, row, ScaleType::kF32},
      {Codec::kBF16, {}, ScaleType::kF32},
      {Codec::kNf4, {}, ScaleType::kNone},
      {Codec::kNf4, flat, ScaleType::kNone},
      {Codec::kNf4, row, ScaleType::kNested},
      {Codec::kUInt4, flat, ScaleType::kF32},
      {Codec::kE4M3, row, ScaleType::kF32, ZeroType::kF32},
      {Codec::kInt8, flat, ScaleType::kAbsmax},
      {Codec::kInt8, row, ScaleType::kNested},
      {Codec::kFp4, {BlockShape::Kind::kFlat, 0}, ScaleType::kF32},
  };
  for (const QuantFormat& f : cases) {
    EXPECT_EQ(CheckCreatePacked(f, 8, {{"m", 0, 4}}).code(), absl::StatusCode::kInvalidArgument)
        << f.ToString();
  }
}

TEST(CheckCreatePacked, RefusesEmptyWeights) {
  const QuantFormat f = QuantFormat::Int8Row();
  EXPECT_TRUE(CheckCreatePacked(f, 8, {{"m", 0, 4}}).ok());
  EXPECT_EQ(CheckCreatePacked(f, 0, {{"m", 0, 4}}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckCreatePacked(f, 8, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(CheckCreatePacked(f, 8, {{"m", 0, 0}}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(CheckAttention, TakesAnInt8CacheExactlyWithItsScales) {
  float q[8] = {}, scales[4] = {};
  int8_t k[32] = {}, v[32] = {};
  const TensorView x(DType::kF32, q, 1, 8);
  const AttentionSpec spec{1, 1, 8, 1.0f};
  const std::vector<int32_t> zero = {0};
  const AttentionBatch batch{zero, zero, zero, zero, 1, 1};
  KvLayer cache{DType::kI8, k, v, 1, 4, 1, 8, scales, scales};
  CheckAttention(x, spec, batch, cache, x);
  cache.v_scales = nullptr;
  EXPECT_DEATH(CheckAttention(x, spec, batch, cache, x), "a cache of int8 with 1 scales");
  cache.v_scales = scales;
  cache.dtype = DType::kBF16;
  EXPECT_DEATH(CheckAttention(x, spec, batch, cache, x), "a cache of bfloat16 with 2 scales");
  cache.dtype = DType::kU8;
  EXPECT_DEATH(CheckAttention(x, spec, batch, cache, x),
               "allowed: float32, float16, bfloat16, int8");
}

TEST(CheckPackRows, NamesTheModuleAndWhatDoesNotFit) {
  const std::unique_ptr<Backend> ref = CreateRefBackend();
  std::vector<float> values(4 * 64, 0.5f);
  const TensorView w(DType::kF32, values.data(), 4, 64);
  QuantizedMatrix good = QuantizeBlock4(w, Codec::kNf4, 64);
  NestScales(good);
  auto weight =
      ref->CreatePacked(good.format, 64, {{"layers.0.q_proj", 0, 4}}, MemoryComponent::kWeights);
  ASSERT_TRUE(weight.ok());
  EXPECT_TRUE(ref->PackRows(**weight, 0, good).ok());

  struct {
    const char* part;
    void (*spoil)(QuantizedMatrix&);
  } const cases[] = {
      {"nf4.flat64.f32", [](QuantizedMatrix& q) { q.format.scale = ScaleType::kF32; }},
      {"expected [4, 64]", [](QuantizedMatrix& q) { q.n = 3; }},
      {"expected [4, 64]", [](QuantizedMatrix& q) { q.k = 65; }},
      {"codes has 255", [](QuantizedMatrix& q) { q.codes.pop_back(); }},
      {"nested_codes has 3", [](QuantizedMatrix& q) { q.nested_codes.pop_back(); }},
      {"nested_map has 255", [](QuantizedMatrix& q) { q.nested_map.pop_back(); }},
      {"nested_absmax has 2", [](QuantizedMatrix& q) { q.nested_absmax.push_back(1.0f); }},
  };
  for (const auto& c : cases) {
    QuantizedMatrix bad = good;
    c.spoil(bad);
    const absl::Status status = ref->PackRows(**weight, 0, bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.part;
    const std::string message(status.message());
    EXPECT_NE(message.find(c.part), std::string::npos) << message;
    EXPECT_NE(message.find("layers.0.q_proj"), std::string::npos) << message;
  }
}

TEST(OpChecksDeathTest, WrongShapesAndIdsAbortWithTheirValues) {
  const std::unique_ptr<Backend> ref = CreateRefBackend();
  std::vector<float> data(64, 0.0f);
  const TensorView x(DType::kF32, data.data(), 2, 8);
  EXPECT_DEATH(ref->RmsNorm(x, data.data(), 1e-5f, TensorView(DType::kF32, data.data(), 2, 7)),
               "out is \\[2, 7\\], expected \\[2, 8\\]");
  EXPECT_DEATH(ref->RmsNorm(x, data.data(), 1e-5f, TensorView(DType::kF16, data.data(), 2, 8)),
               "float32 and float16");
  const std::vector<int32_t> rows = {0, 2};
  EXPECT_DEATH(ref->GatherRows(x, rows, x), "rows\\[1\\] is 2, allowed: 0 to 1");
  EXPECT_DEATH(ref->GatedActivation(x, Activation::kSilu, x),
               "gate_up is \\[2, 8\\], expected \\[2, 16\\]");
}

}  // namespace
}  // namespace quantd

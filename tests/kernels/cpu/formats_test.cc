// Every quantized format and every kind of activation quantization on the cpu backend: each format
// that Check accepts against ref, the replaced activations to the bit.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/vector_ops.h"
#include "kernels/status.h"
#include "tests/kernels/conformance.h"

namespace quantd::testing {
namespace {

Backend& Cpu(CpuIsa isa) {
  static std::vector<std::pair<CpuIsa, std::unique_ptr<Backend>>> made;
  for (const auto& [which, backend] : made) {
    if (which == isa) return *backend;
  }
  made.emplace_back(isa, CreateCpuBackend({.num_threads = 1, .isa = isa}).value());
  return *made.back().second;
}

/// Blocks that fit into a row of 48 columns, do not divide it, split a chunk of 8, cross rows.
constexpr BlockShape kBlocks[] = {
    {BlockShape::Kind::kRow, 0, 0},      {BlockShape::Kind::kGroup, 16, 0},
    {BlockShape::Kind::kGroup, 32, 0},   {BlockShape::Kind::kGroup, 20, 0},
    {BlockShape::Kind::kGroup, 64, 0},   {BlockShape::Kind::kFlat, 16, 0},
    {BlockShape::Kind::kFlat, 32, 0},    {BlockShape::Kind::kFlat, 4, 0},
    {BlockShape::Kind::kTile, 16, 16},   {BlockShape::Kind::kTile, 32, 7},
    {BlockShape::Kind::kTile, 128, 128}, {BlockShape::Kind::kStrided, 16, 0},
};

std::vector<QuantFormat> EveryFormat() {
  std::vector<QuantFormat> formats;
  for (int codec = 0; codec <= static_cast<int>(Codec::kE4M3); ++codec) {
    for (const BlockShape& block : kBlocks) {
      for (int scale = 0; scale <= static_cast<int>(ScaleType::kE4M3); ++scale) {
        for (int zero = 0; zero <= static_cast<int>(ZeroType::kAddedF32); ++zero) {
          for (const bool reordered : {false, true}) {
            const QuantFormat f{static_cast<Codec>(codec), block, static_cast<ScaleType>(scale),
                                static_cast<ZeroType>(zero), reordered};
            // bitsandbytes' own quantizer makes flat blocks with f32 or nested scales only.
            const bool bnb = f.codec == Codec::kNf4 || f.codec == Codec::kFp4;
            const bool made = !bnb || block.kind != BlockShape::Kind::kFlat ||
                              f.scale == ScaleType::kF32 || f.scale == ScaleType::kNested;
            if (f.Check().ok() && made) formats.push_back(f);
          }
        }
      }
    }
  }
  return formats;
}

TEST(CpuFormats, EveryOneThatCheckAcceptsIsComputed) {
  constexpr int64_t kN = 20, kK = 48, kM = 2;
  const std::vector<QuantFormat> formats = EveryFormat();
  EXPECT_GT(formats.size(), 1000u);
  std::vector<float> values = RandomFloats(kN * kK, 1, 0.05f);
  for (float& v : values) v += 0.02f;  // zero points off the middle of the codes
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    const std::vector<float> floats = RoundedTo(dtype, RandomFloats(kM * kK, 2));
    const DeviceMatrix x(Ref(), dtype, kM, kK, floats);
    for (const QuantFormat& format : formats) {
      const std::vector<QuantizedMatrix> matrix = {MatrixOf(format, values, kN)};
      for (const bool reference : {false, true}) {
        const ActivationQuant activation{.reference = reference};
        const DeviceMatrix expected(Ref(), DType::kF32, kM, kN);
        Ref().Linear(*Pack(Ref(), matrix), activation, x, nullptr, expected);
        for (const CpuIsa isa : SupportedIsas()) {
          SCOPED_TRACE(fmt::format("{} {} {} reference {}", format.ToString(), ToString(isa),
                                   ToString(dtype), reference));
          const DeviceMatrix y(Cpu(isa), DType::kF32, kM, kN);
          Cpu(isa).Linear(*Pack(Cpu(isa), matrix), activation, x, nullptr, y);
          // Codes to 255 and zero points to 255, of a scale of about 1/255 of the largest weight:
          // 48 products of magnitude 0.2 * 4, a table rounded to bf16.
          const bool table = dtype == DType::kBF16 && BitsOf(format.codec) == 4;
          ExpectClose(y.Read(), expected.Read(),
                      std::vector<double>(kM * kN, table ? 48 * 0x1p-9 : 48 * 0x1p-21), DType::kF32,
                      "y");
          if (HasFailure()) return;
        }
      }
    }
  }
}

std::vector<ActivationQuant> EveryReplacement() {
  using Kind = ActivationQuant::Kind;
  using Rounding = ActivationQuant::Rounding;
  std::vector<ActivationQuant> list;
  for (const Kind kind : {Kind::kInt8Token, Kind::kInt8TokenAsym, Kind::kInt8Tensor,
                          Kind::kFp8Token, Kind::kFp8Group, Kind::kFp8Tensor}) {
    for (const Rounding rounding : {Rounding::kF32, Rounding::kScale, Rounding::kEveryStep}) {
      list.push_back({.kind = kind,
                      .rounding = rounding,
                      .group = 24,
                      .scale = 0.013671875f,
                      .zero_point = kind == Kind::kInt8Tensor ? -7 : 0});
    }
  }
  return list;
}

template <class T>
void ExpectReplaced(const ActivationQuant& q, DType dtype, std::vector<float> values) {
  const int64_t k = static_cast<int64_t>(values.size());
  std::vector<T> x(values.begin(), values.end()), replaced(values.size());
  const auto round = [](float v) { return static_cast<float>(static_cast<T>(v)); };
  for (const CpuIsa isa : SupportedIsas()) {
    SCOPED_TRACE(fmt::format("kind {} rounding {} {} {}", static_cast<int>(q.kind),
                             static_cast<int>(q.rounding), ToString(dtype), ToString(isa)));
    const ReplaceKernels& kernels = ReplaceKernelsFor(isa);
    const TensorView view(dtype, x.data(), 1, k);
    kernels.replace_row(q, view, 0, replaced.data());
    std::vector<float> expected(values.size()), actual(replaced.begin(), replaced.end());
    std::vector<int8_t> codes(values.size());
    const bool int8 = !IsFp8(q.kind);
    const ActivationScale used = int8 ? kernels.codes(q, view, 0, codes.data()) : ActivationScale{};
    const int64_t size = q.kind == ActivationQuant::Kind::kFp8Group ? q.group : k;
    bool nan = false;
    for (int64_t first = 0; first < k; first += size) {
      const int64_t end = std::min(first + size, k);
      float low = 0.0f, high = 0.0f;
      for (int64_t c = first; c < end; ++c) {
        const float v = static_cast<float>(x[static_cast<size_t>(c)]);
        const bool asym = q.kind == ActivationQuant::Kind::kInt8TokenAsym;
        high = std::max(high, asym ? v : std::fabs(v));
        low = std::min(low, v);
      }
      const ActivationScale s = ActivationScaleOf(q, low, high, round);
      for (int64_t c = first; c < end; ++c) {
        const size_t i = static_cast<size_t>(c);
        const float code = ActivationCode(q, s, static_cast<float>(x[i]), round);
        nan = nan || std::isnan(code);
        expected[i] = round(ActivationValue(s, code));
        if (int8 && !std::isnan(code)) {
          EXPECT_EQ(codes[i], static_cast<int8_t>(code)) << c;
        }
        if (std::isnan(expected[i])) {
          EXPECT_TRUE(std::isnan(actual[i])) << c;
          actual[i] = expected[i];
        }
      }
      if (int8 && !nan) {
        EXPECT_EQ(used.scale, s.scale);
        EXPECT_EQ(used.zero_point, s.zero_point);
      }
    }
    if (int8) {
      EXPECT_EQ(std::isnan(used.scale), nan);
    }
    ExpectSameBits(actual, expected, "x'");
  }
}

TEST(CpuReplacedActivations, AreTheSharedFunctionsToTheBit) {
  std::vector<std::vector<float>> rows = {RandomFloats(100, 1), RandomFloats(333, 2, 40.0f),
                                          std::vector<float>(64, 0.0f), RandomFloats(7, 3, 1e-6f)};
  std::vector<float> ties, spoiled = RandomFloats(48, 4);
  for (int i = -300; i <= 300; ++i) ties.push_back(static_cast<float>(i) * 0.25f);
  rows.push_back(ties);
  spoiled[5] = std::numeric_limits<float>::quiet_NaN();
  rows.push_back(spoiled);
  spoiled[5] = std::numeric_limits<float>::infinity();
  rows.push_back(spoiled);
  rows.push_back({-0.0f, 1e-3f, -3e-3f});
  for (const ActivationQuant& q : EveryReplacement()) {
    for (const std::vector<float>& row : rows) {
      ExpectReplaced<float>(q, DType::kF32, row);
      ExpectReplaced<F16>(q, DType::kF16, row);
      ExpectReplaced<BF16>(q, DType::kBF16, row);
      if (HasFailure()) return;
    }
  }
}

TEST(CpuReplacedActivations, WhatIsNotFiniteShowsInTheWholeRow) {
  constexpr int64_t kN = 5, kK = 40;
  std::vector<float> values = RandomFloats(kN * kK, 1);
  const std::vector<QuantizedMatrix> matrix = {
      MatrixOf(QuantFormat::Parse("int8.row.bf16").value(), values, kN)};
  for (const CpuIsa isa : SupportedIsas()) {
    for (const ActivationQuant::Kind kind :
         {ActivationQuant::Kind::kInt8Token, ActivationQuant::Kind::kInt8TokenAsym}) {
      for (const float bad :
           {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        std::vector<float> floats = RandomFloats(2 * kK, 2);
        floats[3] = bad;
        const DeviceMatrix x(Cpu(isa), DType::kBF16, 2, kK, floats);
        const DeviceMatrix y(Cpu(isa), DType::kBF16, 2, kN);
        Cpu(isa).Linear(*Pack(Cpu(isa), matrix), {.kind = kind}, x, nullptr, y);
        const std::vector<float> result = y.Read();
        for (size_t i = 0; i < result.size(); ++i) {
          EXPECT_EQ(std::isnan(result[i]), i < kN) << ToString(isa) << " " << i;
        }
      }
    }
  }
}

}  // namespace
}  // namespace quantd::testing

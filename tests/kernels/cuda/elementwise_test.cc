// The row ops of elementwise.cu against plain loops: moves and biases are exact, activations
// and soft caps are within the roundings of their f32 arithmetic. Every op is run over aligned and
// over unaligned views.
#include <gtest/gtest.h>

#include <memory>

#include "tests/kernels/cuda/rows_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using on_device::Array;
using on_device::Execute;
using on_device::ExpectNear;
using on_device::ExpectSame;
using on_device::kNarrow;
using on_device::kTypes;
using on_device::kWide;
using on_device::Layout;
using on_device::NameOf;
using on_device::Normal;
using on_device::Rounded;
using on_device::Rows;

Codec PlainCodec(FloatType type) {
  return type == FloatType::kF32   ? Codec::kF32
         : type == FloatType::kF16 ? Codec::kF16
                                   : Codec::kBF16;
}

TEST(CudaEmbed, ReadsRowsOfEverySegmentRoundedOnce) {
  const std::vector<int32_t> ids = {0, 4, 5, 6, 12, 13, 14, 3, 3};
  const std::vector<size_t> rows_of_segment = {5, 2, 6, 2};
  for (FloatType table_type : kTypes) {
    for (FloatType type : kTypes) {
      for (size_t k : {1, 8, 33, 200, 2056}) {
        for (Layout layout : {kWide, kNarrow}) {
          const float scale = k == 33 || k == 2056 ? 8.5f : 1.0f;
          const std::vector<float> values = Rounded(table_type, Normal(15 * k, 1));
          WeightView table;
          table.codec = PlainCodec(table_type);
          table.n = 15;
          table.k = table.padded_k = static_cast<int32_t>(k);
          std::vector<std::unique_ptr<Rows>> segments;
          size_t first = 0;
          for (size_t rows : rows_of_segment) {
            segments.push_back(std::make_unique<Rows>(
                table_type, rows, k, std::span(values).subspan(first * k, rows * k)));
            WeightSegment& segment = table.segments[table.num_segments++];
            segment.first_row = static_cast<int32_t>(first);
            segment.rows = static_cast<int32_t>(rows);
            segment.codes = static_cast<const uint8_t*>(segments.back()->data());
            first += rows;
          }
          const Rows out(type, ids.size(), k, layout);
          const Array<int32_t> device_ids(ids);
          Execute([&](Stream s) { Embed(table, device_ids.data(), scale, out, s); });
          std::vector<float> expected;
          for (int32_t id : ids) {
            for (size_t c = 0; c < k; ++c) {
              expected.push_back(Rounded(type, scale * values[static_cast<size_t>(id) * k + c]));
            }
          }
          ExpectSame(out.Read(), expected,
                     NameOf(table_type) + " to " + NameOf(type) + ", k " + std::to_string(k));
        }
      }
    }
  }
}

TEST(CudaGatherRows, CopiesBits) {
  const std::vector<int32_t> rows = {8, 0, 0, 5, 7};
  for (FloatType type : kTypes) {
    for (size_t cols : {1, 33, 64}) {
      for (Layout layout : {kWide, kNarrow}) {
        std::vector<float> values = Rounded(type, Normal(9 * cols, 1));
        values[5 * cols] = std::numeric_limits<float>::infinity();
        values[7 * cols] = -0.0f;
        values[8 * cols] = std::bit_cast<float>(0xffffe000u);  // a NaN with its own payload
        const Rows x(type, 9, cols, values, layout), out(type, rows.size(), cols, kWide);
        const Array<int32_t> index(rows);
        Execute([&](Stream s) { GatherRows(x, index.data(), out, s); });
        const std::vector<float> source = x.Read();
        std::vector<float> expected;
        for (int32_t row : rows) {
          const auto from = source.begin() + row * static_cast<std::ptrdiff_t>(cols);
          expected.insert(expected.end(), from, from + static_cast<std::ptrdiff_t>(cols));
        }
        ExpectSame(out.Read(), expected, NameOf(type) + " " + std::to_string(cols));
      }
    }
  }
}

TEST(CudaGatherColumns, CopiesBitsInTheOrderAsked) {
  const std::vector<int32_t> columns = {6, 0, 3, 3, 299, 1};
  const Array<int32_t> order(columns);
  for (FloatType type : kTypes) {
    const std::vector<float> values = Rounded(type, Normal(3 * 300, 5));
    const Rows x(type, 3, 300, values, kNarrow), out(type, 3, columns.size(), kNarrow);
    Execute([&](Stream stream) { GatherColumns(x, order.data(), out, stream); });
    std::vector<float> expected;
    for (size_t row = 0; row < 3; ++row) {
      for (const int32_t c : columns)
        expected.push_back(values[row * 300 + static_cast<size_t>(c)]);
    }
    ExpectSame(out.Read(), expected, NameOf(type));
  }
}

TEST(CudaGatedActivation, IsWithinRoundingsOfTheExactValueOnEveryLayout) {
  for (const bool gelu : {false, true}) {
    for (FloatType type : kTypes) {
      for (size_t n : {1, 8, 33, 200, 2064}) {
        std::vector<float> values = Normal(3 * 2 * n, 8, 4.0f);
        // Where exp overflows or vanishes.
        const float extremes[] = {0.0f, -0.0f, 88.0f, -88.0f, 104.0f, -104.0f, 1000.0f, -1000.0f};
        for (size_t i = 0; i < 8 && i < n; ++i) values[i] = extremes[i];
        values = Rounded(type, values);
        std::vector<double> expected;
        for (size_t r = 0; r < 3; ++r) {
          for (size_t c = 0; c < n; ++c) {
            const double gate = values[r * 2 * n + c], up = values[r * 2 * n + n + c];
            const double u = std::sqrt(8 / M_PI) * (gate + 0.044715 * gate * gate * gate);
            expected.push_back(gate / (1.0 + std::exp(gelu ? -u : -gate)) * up);
          }
        }
        std::vector<float> wide;
        for (Layout layout : {kWide, kNarrow}) {
          const Rows x(type, 3, 2 * n, values, layout), out(type, 3, n, layout);
          Execute([&](Stream s) { GatedActivation(x, gelu, out, s); });
          // exp to two ulps, a sum, a division, a product: six roundings of 2^-24; GELU's exponent,
          // up to 90, errs by four of itself. Below -87 the f32 exponential overflows and the
          // result, some e^-87 times 1000, becomes zero.
          const std::string what = NameOf(type) + ", " + std::to_string(n) + " columns";
          const double relative = 0x1p-21 + (gelu ? 90 * 4 * 0x1p-24 : 0.0);
          ExpectNear(out.Read(), expected, relative, 1e3 * 0x1p-125, type, what);
          if (wide.empty()) wide = out.Read();
          ExpectSame(out.Read(), wide, what + ", alignment");
        }
      }
    }
  }
}

TEST(CudaSoftCap, IsWithinRoundingsOfTheExactValue) {
  for (size_t n : {1, 33, 300}) {
    std::vector<float> values = Normal(4 * n, 7, 10.0f);
    values[0] = 1e30f;
    const Rows x(FloatType::kF32, 4, n, values, kNarrow);
    Execute([&](Stream s) { SoftCap(x, 7.0f, s); });
    std::vector<double> expected;
    for (const double v : values) expected.push_back(7.0 * std::tanh(v / 7.0));
    ExpectNear(x.Read(), expected, 6 * 0x1p-24, 0.0, FloatType::kF32, std::to_string(n));
  }
}

TEST(CudaAddBias, RoundsTheSumOnce) {
  for (FloatType type : kTypes) {
    for (size_t n : {1, 24, 35, 2100}) {
      for (Layout layout : {kWide, kNarrow}) {
        const std::vector<float> values = Rounded(type, Normal(4 * n, 3)), bias = Normal(n, 4);
        const Rows y(type, 4, n, values, layout);
        const Array<float> b(bias);
        Execute([&](Stream s) { AddBias(y, b.data(), s); });
        std::vector<float> expected;
        for (size_t i = 0; i < values.size(); ++i) {
          expected.push_back(Rounded(type, values[i] + bias[i % n]));
        }
        ExpectSame(y.Read(), expected, NameOf(type) + " " + std::to_string(n));
      }
    }
  }
}

TEST(CudaFeedBackTokens, ReplacesOnlyRowsWithASource) {
  for (int32_t count : {1, 4, 300}) {
    std::vector<int32_t> ids, source, expected;
    const std::vector<int32_t> sampled = {100, 101, 102};
    for (int32_t i = 0; i < count; ++i) {
      ids.push_back(10 + i);
      source.push_back(i % 4 - 1);
      expected.push_back(i % 4 == 0 ? 10 + i : 100 + i % 4 - 1);
    }
    const Array<int32_t> device_ids(ids), device_source(source), device_sampled(sampled);
    Execute([&](Stream s) {
      FeedBackTokens(device_ids.data(), device_source.data(), device_sampled.data(), count, s);
    });
    EXPECT_EQ(device_ids.Read(), expected);
  }
}

TEST(CudaRowOps, LaunchNothingForNoRows) {
  const Rows x(FloatType::kBF16, 0, 16), out(FloatType::kBF16, 0, 16), half(FloatType::kBF16, 0, 8);
  const Array<int32_t> none({});
  const Array<float> weight(std::vector<float>(16, 1.0f));
  WeightView table;
  Execute([&](Stream s) {
    Embed(table, none.data(), 1.0f, out, s);
    GatherRows(x, none.data(), out, s);
    GatedActivation(x, false, half, s);
    SoftCap(x, 1.0f, s);
    NormHeads(x, half, weight.data(), weight.data(), 1e-5f, {2, 1, 8, 1.0f}, s);
    AddBias(x, weight.data(), s);
    FeedBackTokens(none.data(), none.data(), none.data(), 0, s);
    RmsNorm(x, weight.data(), 1e-5f, out, s);
    AddRmsNorm(x, x, weight.data(), 1e-5f, out, s);
    RopeAndStoreKv(x, x, x, weight.data(), {1, 1, 16, 1.0f}, {}, {}, s);
    Sample(x, nullptr, {}, nullptr, nullptr, nullptr, s);
  });
  EXPECT_TRUE(FirstError().ok());
}

}  // namespace
}  // namespace quantd::cuda_emulated

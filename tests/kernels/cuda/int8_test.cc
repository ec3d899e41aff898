// LLM.int8 on the emulated device: activations against plain loops to the bit, Linear against ref
// within a derived tolerance, and what is promised to the bit: rows alone or together, our int32
// sums or cuBLASLt's, any division of the work.
//
// Tolerance, as in linear_conformance_test.cc: integer sums are exact, what remains is a handful of
// f32 operations: 16 * 2^-24 of the sum of magnitudes, and half an ulp of y's type.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/emulation/fibers.h"
#include "kernels/quant/quantize.h"
#include "kernels/ref/ref_backend.h"
#include "tests/kernels/cuda/int8_testing.h"

namespace quantd::cuda_emulated {
namespace {

constexpr DeviceLimits kDevice = {4, 9, 0};

/// An int8 weight of several segments, on the device and for ref.
class Int8Weight {
 public:
  Int8Weight(const std::vector<int32_t>& segments, int32_t k, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    view_.codec = Codec::kInt8;
    view_.k = view_.padded_k = view_.block = k;
    view_.order = BlockOrder::kGrid;
    view_.row_blocks = 1;
    view_.scale = Stored::kF32;
    view_.scale_step = kInt8Step;
    for (int32_t rows : segments) {
      std::vector<float> w(static_cast<size_t>(rows) * static_cast<size_t>(k));
      for (float& v : w) v = normal(random);
      if (rows > 2) std::fill_n(w.begin() + k, k, 0.0f);  // an output whose scale is zero
      matrices_.push_back(quantd::QuantizeInt8Rows(TensorView(DType::kF32, w.data(), rows, k)));
      codes_.push_back(std::make_unique<DeviceVector<uint8_t>>(matrices_.back().codes));
      scales_.push_back(std::make_unique<DeviceVector<float>>(matrices_.back().scales));
      WeightSegment& s = view_.segments[view_.num_segments++];
      s.first_row = view_.n;
      s.rows = rows;
      s.codes = codes_.back()->data();
      s.scales = scales_.back()->data();
      view_.n += rows;
    }
  }
  const WeightView& view() const { return view_; }
  const std::vector<QuantizedMatrix>& matrices() const { return matrices_; }

  float Value(int32_t row, int32_t col) const {
    size_t s = 0;
    while (row >= matrices_[s].n) row -= static_cast<int32_t>(matrices_[s++].n);
    return matrices_[s].Dequantize(row, col);
  }

 private:
  WeightView view_;
  std::vector<QuantizedMatrix> matrices_;
  std::vector<std::unique_ptr<DeviceVector<uint8_t>>> codes_;
  std::vector<std::unique_ptr<DeviceVector<float>>> scales_;
};

struct Int8Shape {
  std::vector<int32_t> segments;
  int32_t k = 0;
  FloatType x = FloatType::kBF16, y = FloatType::kF32;
  int32_t gap = 0;
};

struct Int8Problem {
  explicit Int8Problem(const Int8Shape& s, int32_t num_rows, bool outliers = true)
      : shape(s), rows(num_rows), weight(s.segments, s.k, 17), bias(MakeBias()) {
    std::mt19937 random(static_cast<uint32_t>(s.k));
    std::normal_distribution<float> normal(0.0f, 1.5f);
    for (int32_t r = 0; r < rows; ++r) {
      for (int32_t c = 0; c < s.k; ++c) {
        float v = std::min(std::max(normal(random), -5.9f), 5.9f);
        if (outliers && r % 3 != 1 && (c + r / 5) % 37 == 5) v *= 30.0f;
        if (outliers && r % 4 == 0 && c % 101 == 7) v = c % 2 == 0 ? 6.0f : -6.0f;
        if (outliers && r == 7) v = c % 2 == 0 ? 6.0f : -65.0f;  // nothing but outliers
        if (r == 4) v = 0.0f;
        std::byte element[4];
        StoreAs(s.x, element, v);
        x.push_back(LoadAs(s.x, element));
      }
    }
  }
  int32_t n() const { return weight.view().n; }
  std::span<const float> X(int32_t first, int32_t m) const {
    return std::span(x).subspan(static_cast<size_t>(first * shape.k),
                                static_cast<size_t>(m * shape.k));
  }

  Int8Shape shape;
  int32_t rows;
  Int8Weight weight;
  std::vector<float> bias;
  std::vector<float> x;  // [rows, k], exact in the shape's type

 private:
  std::vector<float> MakeBias() const {
    std::vector<float> b(static_cast<size_t>(weight.view().n));
    for (size_t i = 0; i < b.size(); ++i) b[i] = std::sin(static_cast<float>(i));
    return b;
  }
};

struct RunOptions {
  float threshold = 6.0f;
  Scope scope = Scope::kRow;
  DeviceLimits device = kDevice;
  bool cublaslt = false;  // sums from cuBLASLt, or plain loops where it refuses
  bool workspace = true;
};

/// y of rows first .. first + m - 1.
std::vector<float> Linear(const Int8Problem& p, int32_t first, int32_t m,
                          const RunOptions& o = {}) {
  const TestStream stream;
  const WeightView& w = p.weight.view();
  const DeviceRows x(p.shape.x, m, w.k, p.shape.gap, p.X(first, m)),
      y(p.shape.y, m, w.n, p.shape.gap);
  const DeviceVector<float> bias(p.bias);
  const DeviceVector<unsigned char> memory(Int8ActivationBytes(m, w.k));
  const Int8Activations a = Int8ActivationsAt(memory.data(), m, w.k);
  QuantizeInt8(x.view(), o.threshold, o.scope == Scope::kCall, a, stream);
  if (!o.cublaslt) {
    const size_t bytes = o.workspace ? LinearInt8WorkspaceBytes(w, m, o.device) : 0;
    const DeviceVector<unsigned char> room(bytes);
    EXPECT_EQ(LinearInt8Counters(w, m, o.device), 0);
    LinearInt8Mma(w, x.view(), a, bias.data(), y.view(), {room.data(), bytes, nullptr, 0}, o.device,
                  stream);
    stream.Finish();
    return y.Read();
  }
  const int64_t stride = w.n % 4 == 0 ? w.n + 4 : w.n;
  const DeviceVector<int32_t> sums(static_cast<size_t>(m * stride));
  static const DeviceVector<unsigned char> room(CublasLt::kWorkspaceBytes);
  const auto library = CublasLt::Open();
  EXPECT_TRUE(library.ok());
  bool refused = false;
  for (int32_t s = 0; s < w.num_segments; ++s) {
    const WeightSegment& segment = w.segments[s];
    refused = refused ||
              !(*library)
                   ->GemmInt8(a.codes, a.padded_k, reinterpret_cast<const int8_t*>(segment.codes),
                              w.k, sums.data() + segment.first_row, stride, m, segment.rows, w.k,
                              room.data(), stream)
                   .ok();
  }
  stream.Finish();
  bool odd = w.k % 4 != 0;
  for (int32_t rows : p.shape.segments) odd = odd || rows % 4 != 0;
  EXPECT_EQ(refused, odd);
  if (refused) {
    for (int32_t i = 0; i < m * w.n; ++i) {
      const int32_t row = i / w.n;
      int32_t column = i % w.n, s = 0;
      while (s + 1 < w.num_segments && column >= w.segments[s + 1].first_row) ++s;
      column -= w.segments[s].first_row;
      int32_t sum = 0;
      for (int32_t c = 0; c < w.k; ++c) {
        sum += a.codes[int64_t{row} * a.padded_k + c] *
               static_cast<int8_t>(w.segments[s].codes[int64_t{column} * w.k + c]);
      }
      sums[static_cast<size_t>(row * stride + i % w.n)] = sum;
    }
  }
  RescaleInt8(w, x.view(), a, sums.data(), stride, bias.data(), y.view(), stream);
  stream.Finish();
  return y.Read();
}

/// ref's y in f32 of the first m rows.
std::vector<float> RunRef(const Int8Problem& p, int32_t m, const RunOptions& o) {
  auto ref = CreateRefBackend();
  std::vector<RowSegment> segments;
  for (int32_t rows : p.shape.segments) {
    segments.push_back(
        {"s", segments.empty() ? 0 : segments.back().first_row + segments.back().rows, rows});
  }
  auto packed =
      ref->CreatePacked(QuantFormat::Int8Row(), p.shape.k, segments, MemoryComponent::kWeights);
  EXPECT_TRUE(packed.ok());
  for (size_t s = 0; s < segments.size(); ++s) {
    EXPECT_TRUE(ref->PackRows(**packed, s, p.weight.matrices()[s]).ok());
  }
  std::vector<float> x(p.X(0, m).begin(), p.X(0, m).end());
  std::vector<float> y(static_cast<size_t>(m * p.n()));
  ref->Linear(**packed, {ActivationQuant::Kind::kInt8Outlier, o.threshold, o.scope},
              TensorView(DType::kF32, x.data(), m, p.shape.k), p.bias.data(),
              TensorView(DType::kF32, y.data(), m, p.n()));
  return y;
}

void ExpectClose(const Int8Problem& p, std::span<const float> y, int32_t m, const RunOptions& o) {
  const std::vector<float> expected = RunRef(p, m, o);
  const double half_ulp = p.shape.y == FloatType::kF32   ? 0x1p-24
                          : p.shape.y == FloatType::kF16 ? 0x1p-11
                                                         : 0x1p-8;
  for (int32_t i = 0; i < m * p.n(); ++i) {
    const int32_t row = i / p.n(), column = i % p.n();
    double magnitude = std::fabs(double{p.bias[static_cast<size_t>(column)]});
    for (int32_t c = 0; c < p.shape.k; ++c) {
      magnitude += std::fabs(double{p.weight.Value(column, c)} *
                             p.x[static_cast<size_t>(row * p.shape.k + c)]);
    }
    const double want = expected[static_cast<size_t>(i)], got = y[static_cast<size_t>(i)];
    ASSERT_LE(std::fabs(got - want),
              16 * 0x1p-24 * magnitude + half_ulp * std::fabs(want) + 0x1p-24)
        << "row " << row << " column " << column << ": " << got << ", ref " << want;
  }
}

const std::vector<Int8Shape>& Shapes() {
  constexpr FloatType kF32 = FloatType::kF32, kF16 = FloatType::kF16, kBF16 = FloatType::kBF16;
  static const std::vector<Int8Shape> shapes = {
      {{1}, 64, kF32, kF32, 0},
      {{15}, 72, kBF16, kBF16, 5},
      {{17, 31}, 384, kBF16, kF32, 0},
      {{33, 1, 96}, 76, kF32, kF32, 3},
      {{20, 4, 8, 4}, 400, kF16, kF16, 0},
      {{132}, 1024, kBF16, kBF16, 4},
      {{3}, 33, kF16, kF32, 1},
      {{48}, 592, kF32, kBF16, 4},
      {{24}, 200, kBF16, kBF16, 8},  // row 7: a list of more columns than a block gathers

  };
  return shapes;
}

std::string NameOf(const Int8Shape& s) {
  return fmt::format("{} segments from {} rows, k {}", s.segments.size(), s.segments[0], s.k);
}

TEST(LinearInt8Test, IsCloseToRefForEveryNumberOfRows) {
  for (const Int8Shape& shape : Shapes()) {
    SCOPED_TRACE(NameOf(shape));
    const Int8Problem p(shape, 33);
    for (Scope scope : {Scope::kRow, Scope::kCall}) {
      RunOptions o;
      o.scope = scope;
      for (int32_t m : {1, 8, 9, 16, 17, 33}) {
        if (scope == Scope::kRow && m != 33) continue;  // the bits are compared below
        ExpectClose(p, Linear(p, 0, m, o), m, o);
      }
    }
    RunOptions none;
    none.threshold = 0.0f;
    ExpectClose(p, Linear(p, 0, 12, none), 12, none);
  }
}

TEST(LinearInt8Test, ARowHasTheSameBitsAloneAndAmongOthers) {
  for (const Int8Shape& shape : Shapes()) {
    SCOPED_TRACE(NameOf(shape));
    const Int8Problem p(shape, 70);
    const std::vector<float> whole = Linear(p, 0, 70);
    const size_t n = static_cast<size_t>(p.n());
    for (int32_t m = 1; m <= 33; m += shape.k > 512 ? 4 : 1) {
      const int32_t first = m * 5 % (70 - m + 1);
      ExpectSameBits(
          Linear(p, first, m),
          std::span(whole).subspan(static_cast<size_t>(first) * n, static_cast<size_t>(m) * n),
          fmt::format("rows {} + {}", first, m));
    }
    ExpectSameBits(Linear(p, 7, 1), std::span(whole).subspan(7 * n, n),
                   "the row of outliers alone");
  }
}

TEST(LinearInt8Test, SumsOfCublasLtGiveTheSameBits) {
  for (const Int8Shape& shape : Shapes()) {
    SCOPED_TRACE(NameOf(shape));
    const Int8Problem p(shape, 33);
    for (Scope scope : {Scope::kRow, Scope::kCall}) {
      for (int32_t m : {1, 11, 33}) {
        RunOptions ours, theirs;
        ours.scope = theirs.scope = scope;
        theirs.cublaslt = true;
        ExpectSameBits(Linear(p, 0, m, ours), Linear(p, 0, m, theirs), fmt::format("{} rows", m));
      }
    }
  }
}

TEST(LinearInt8Test, BitsDoNotDependOnTheDeviceOrTheWorkspace) {
  // Long enough to be split over blocks where there are many multiprocessors.
  const Int8Problem p({{17, 8}, 4112, FloatType::kBF16, FloatType::kF32, 0}, 35);
  for (int32_t m : {1, 12, 35}) {
    RunOptions large, without;
    large.device.multiprocessors = 132;
    without.workspace = false;
    ASSERT_GT(LinearInt8WorkspaceBytes(p.weight.view(), m, large.device),
              LinearInt8WorkspaceBytes(p.weight.view(), m, {1, 9, 0}));
    const std::vector<float> y = Linear(p, 0, m);
    ExpectSameBits(Linear(p, 0, m, large), y, fmt::format("132 multiprocessors, {} rows", m));
    ExpectSameBits(Linear(p, 0, m, without), y, fmt::format("no workspace, {} rows", m));
  }
  ExpectClose(p, Linear(p, 0, 9), 9, {});
}

TEST(LinearInt8Test, ManyRowsOfTheWeightTakeTwoTilesAWarp) {
  const Int8Problem p({{300}, 320, FloatType::kBF16, FloatType::kBF16, 0}, 13);
  RunOptions small, large;
  small.device.multiprocessors = 1;
  large.device.multiprocessors = 132;
  for (int32_t m : {1, 13}) ExpectSameBits(Linear(p, 0, m, small), Linear(p, 0, m, large), "tiles");
  ExpectClose(p, Linear(p, 0, 13, small), 13, small);
}

TEST(LinearInt8Test, MoreRowsThanAChunkEqualTheRowsAlone) {
  const Int8Problem p({{12}, 80, FloatType::kBF16, FloatType::kF32, 0}, 531);
  const std::vector<float> whole = Linear(p, 0, 531);
  for (int32_t row : {0, 7, 200, 511, 512, 530}) {
    ExpectSameBits(Linear(p, row, 1), std::span(whole).subspan(static_cast<size_t>(row) * 12, 12),
                   fmt::format("row {}", row));
  }
}

TEST(LinearInt8Test, NoOrderOfThreadsChangesABit) {
  const Int8Problem p({{36}, 400, FloatType::kBF16, FloatType::kF32, 0}, 20);
  RunOptions theirs;
  theirs.cublaslt = true;
  theirs.scope = Scope::kCall;
  const ScheduleOrder before = GetScheduleOrder();
  std::vector<std::vector<float>> first;
  for (const ScheduleOrder order : {ScheduleOrder{ScheduleOrder::Kind::kForward, 0},
                                    ScheduleOrder{ScheduleOrder::Kind::kReverse, 0},
                                    ScheduleOrder{ScheduleOrder::Kind::kRandom, 3}}) {
    SetScheduleOrder(order);
    const std::vector<std::vector<float>> y = {Linear(p, 0, 5), Linear(p, 0, 20),
                                               Linear(p, 0, 20, theirs)};
    if (first.empty()) first = y;
    for (size_t i = 0; i < y.size(); ++i) ExpectSameBits(y[i], first[i], "order");
  }
  SetScheduleOrder(before);
}

TEST(LinearInt8Test, WhatIsNotFiniteShowsInItsRowAndOnlyThere) {
  for (float threshold : {0.0f, 6.0f}) {
    for (const float bad : {kNaN, kInfinity}) {
      Int8Problem p({{20}, 400, FloatType::kBF16, FloatType::kF32, 0}, 20, /*outliers=*/false);
      p.x[static_cast<size_t>(2 * 400 + 399)] = bad;
      p.x[static_cast<size_t>(18 * 400 + 3)] = bad;
      RunOptions o;
      o.threshold = threshold;
      for (bool cublaslt : {false, true}) {
        o.cublaslt = cublaslt;
        for (int32_t m : {3, 20}) {
          const std::vector<float> y = Linear(p, 0, m, o);
          for (size_t i = 0; i < y.size(); ++i) {
            const size_t row = i / 20;
            // Row 1 of the weight is zero: infinity times zero is no number either.
            ASSERT_EQ(std::isfinite(y[i]), row != 2 && row != 18)
                << "row " << row << " column " << i % 20 << " is " << y[i];
          }
        }
      }
    }
  }
}

TEST(LinearInt8Test, NoBiasIsAZeroBiasAndNoRowsAreFine) {
  Int8Problem p({{20}, 80, FloatType::kBF16, FloatType::kF32, 0}, 20);
  std::fill(p.bias.begin(), p.bias.end(), 0.0f);
  const WeightView& w = p.weight.view();
  for (int32_t m : {0, 3, 20}) {
    const TestStream stream;
    const DeviceRows x(p.shape.x, m, w.k, 0, p.X(0, m)), y(p.shape.y, m, w.n, 0);
    const DeviceVector<unsigned char> memory(Int8ActivationBytes(m, w.k));
    const Int8Activations a = Int8ActivationsAt(memory.data(), m, w.k);
    const size_t bytes = LinearInt8WorkspaceBytes(w, m, kDevice);
    const DeviceVector<unsigned char> room(bytes);
    QuantizeInt8(x.view(), 6.0f, true, a, stream);
    LinearInt8Mma(w, x.view(), a, nullptr, y.view(), {room.data(), bytes, nullptr, 0}, kDevice,
                  stream);
    stream.Finish();
    RunOptions call;
    call.scope = Scope::kCall;
    if (m > 0) ExpectSameBits(y.Read(), Linear(p, 0, m, call), "bias");
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated

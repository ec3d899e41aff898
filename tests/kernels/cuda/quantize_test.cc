// Quantization on the emulated device equals kernels/quant/quantize.h byte for byte, in the places
// that weight_view.h says, padding included.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <span>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/quant/quantize.h"

namespace quantd::cuda_emulated {
namespace {

struct FreeDevice {
  void operator()(void* data) const { DeviceFree(data); }
};
using DeviceBytes = std::unique_ptr<unsigned char, FreeDevice>;

DeviceBytes Allocate(size_t bytes) {
  DeviceBytes data(static_cast<unsigned char*>(DeviceAllocate(std::max<size_t>(bytes, 1))));
  std::memset(data.get(), 0xA5, bytes);
  return data;
}

/// Values [rows, k] in device memory, `stride` elements from row to row, and as the host sees them.
struct Values {
  Values(FloatType type, int32_t rows, int32_t k, int32_t stride, const std::vector<float>& from)
      : dtype(type == FloatType::kF32   ? DType::kF32
              : type == FloatType::kF16 ? DType::kF16
                                        : DType::kBF16),
        memory(Allocate(static_cast<size_t>(rows * stride) * SizeOf(dtype))),
        view{type, memory.get(), rows, k, stride},
        host(dtype, memory.get(), rows, k) {
    host.stride = stride;
    for (int32_t i = 0; i < rows * k; ++i) {
      const float v = from[static_cast<size_t>(i)];
      const F16 f16(v);
      const BF16 bf16(v);
      unsigned char* at =
          memory.get() + static_cast<size_t>(i / k * stride + i % k) * SizeOf(dtype);
      if (type == FloatType::kF32) std::memcpy(at, &v, 4);
      if (type == FloatType::kF16) std::memcpy(at, &f16, 2);
      if (type == FloatType::kBF16) std::memcpy(at, &bf16, 2);
    }
  }

  DType dtype;
  DeviceBytes memory;
  Matrix view;
  TensorView host;
};

template <typename F>
void OnDevice(F&& work) {
  const Stream stream = CreateStream();
  work(stream);
  ASSERT_TRUE(Synchronize(stream).ok());
  DestroyStream(stream);
}

void ExpectBlock4(const Values& v, Codec codec, int32_t block, bool tiled) {
  const int32_t rows = v.view.rows, k = v.view.cols;
  SCOPED_TRACE(fmt::format("{} rows, k {}, stride {}, block {}, type {}, codec {}, {}", rows, k,
                           v.view.stride, block, ToString(v.dtype), static_cast<int>(codec),
                           tiled ? "tiled" : "flat"));
  WeightView w;
  w.codec = codec;
  w.order = tiled ? BlockOrder::kTiled : BlockOrder::kFlat;
  w.block = block;
  w.n = rows + 5;
  w.k = k;
  w.padded_k = (k + kTileCols - 1) / kTileCols * kTileCols;
  w.num_segments = 2;
  const int32_t row_tiles = (rows + kTileRows - 1) / kTileRows;
  const size_t code_bytes = static_cast<size_t>(row_tiles * (w.padded_k / kTileCols)) * kTileBytes;
  const size_t num_scales = static_cast<size_t>(tiled ? row_tiles * kTileRows * (k / block)
                                                      : (rows * k + block - 1) / block);
  const DeviceBytes codes = Allocate(code_bytes), scales = Allocate(num_scales * sizeof(float));
  w.segments[1].first_row = 5;
  w.segments[1].rows = rows;
  w.segments[1].codes = codes.get();
  w.segments[1].scales = reinterpret_cast<const float*>(scales.get());
  OnDevice([&](Stream stream) { QuantizeBlock4(w, 1, v.view, stream); });

  const QuantizedMatrix q = quantd::QuantizeBlock4(v.host, codec, block);
  const uint8_t zero = codec == Codec::kNf4 ? Nf4Codec::Encode(0.0f) : Fp4Codec::Encode(0.0f);
  for (int32_t row = 0; row < row_tiles * kTileRows; ++row) {
    for (int32_t col = 0; col < w.padded_k; ++col) {
      const NibblePlace place = PlaceOfNibble(row, col, w.padded_k);
      const int byte = codes.get()[place.byte], code = place.high ? byte >> 4 : byte & 15;
      const bool inside = row < rows && col < k;
      const int expected = inside ? q.codes[static_cast<size_t>(row * k + col)] : zero;
      ASSERT_EQ(code, expected) << "row " << row << " column " << col;
    }
  }
  const auto* const stored = static_cast<const float*>(w.segments[1].scales);
  for (size_t i = 0; i < num_scales; ++i) {
    size_t b = i;
    bool inside = true;
    if (tiled) {
      const size_t per_row = static_cast<size_t>(k / block);
      const size_t row = i / (per_row * kTileRows) * kTileRows + i % kTileRows;
      b = row * per_row + i / kTileRows % per_row;
      inside = row < static_cast<size_t>(rows);
    }
    const float expected = inside ? q.scales[b] : 0.0f;
    ASSERT_EQ(std::memcmp(&stored[i], &expected, sizeof(float)), 0)
        << "scale " << i << " is " << stored[i] << ", not " << expected;
  }
}

std::vector<float> RandomValues(int32_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = normal(random);
  return values;
}

/// Rows that try the corners of the arithmetic, k >= 48.
std::vector<float> AdversarialValues(int32_t rows, int32_t k) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  std::vector<float> values = RandomValues(rows * k, 11);
  const auto row = [&](int32_t r) {
    return std::span(values).subspan(static_cast<size_t>(r * k), static_cast<size_t>(k));
  };
  const auto each = [&](int32_t r, auto&& f) {
    for (size_t i = 0; i < row(r).size(); ++i) row(r)[i] = f(i, row(r)[i]);
  };
  const auto at_midpoints = [](const float(&table)[16], float scale, float step) {
    // The midpoints of neighbours and their neighbouring floats, beside a magnitude of `scale`.
    return [&table, scale, step](size_t i, float) {
      if (i % 48 == 0) return scale;
      const float middle = (table[i % 15] + table[i % 15 + 1]) / 2;
      return (step == 0.0f ? middle : std::nextafter(middle, step)) * scale;
    };
  };
  each(0, [](size_t, float) { return 0.0f; });
  each(1, [](size_t i, float) { return i % 2 == 0 ? -0.0f : 0.0f; });
  each(2, [](size_t i, float) { return 1e-45f * static_cast<float>(i % 7); });  // subnormal
  each(3, [](size_t, float v) { return v * 4e-37f; });  // about the smallest divisor
  each(4, [](size_t, float v) { return v * 1e38f * 20.0f; });
  each(5, at_midpoints(kNf4Table, 1.0f, 0.0f));
  each(6, at_midpoints(kNf4Table, 1.0f, 2.0f));
  each(7, at_midpoints(kNf4Table, 3.0f, -2.0f));
  each(8, at_midpoints(kFp4Table, 1.0f, 0.0f));
  each(9, at_midpoints(kFp4Table, -0.75f, 2.0f));
  row(10)[3] = kInfinity;
  row(11)[k - 1 > 40 ? 40u : 0u] = std::numeric_limits<float>::quiet_NaN();
  each(12, [](size_t, float) { return std::numeric_limits<float>::quiet_NaN(); });
  each(13, [](size_t i, float) { return static_cast<float>(static_cast<int>(i % 255) - 127) / 2; });
  each(14, [](size_t i, float) { return i % 2 == 0 ? 66000.0f : 1.0f; });  // infinite as f16
  each(15, [](size_t, float v) { return v * 1e-6f; });                     // subnormal as f16
  // Between two int8 codes, where 127 / SCB and 127 * (1 / SCB) round to different sides.
  each(16, [](size_t i, float) {
    return 11.0f * (i == 0 ? 127.0f : static_cast<float>(i % 90) + 0.5f);
  });
  return values;
}

constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kF16, FloatType::kBF16};

TEST(QuantizeOnDeviceTest, Block4EqualsTheHostOnRandomMatrices) {
  struct Shape {
    int32_t rows, k, gap, block;
    bool tiled;
  };
  for (const Shape s : {Shape{1, 64, 0, 64, true}, Shape{17, 128, 8, 64, true},
                        Shape{33, 256, 0, 128, true}, Shape{16, 192, 1, 64, false},
                        Shape{5, 40, 3, 64, false},     // blocks cross rows, the last is partial
                        Shape{19, 33, 0, 32, false},    // k is odd
                        Shape{7, 129, 2, 50, false},    // a byte's two codes in different blocks
                        Shape{3, 320, 0, 4096, false},  // one partial block
                        Shape{32, 320, 0, 4096, false}}) {
    const std::vector<float> values =
        RandomValues(s.rows * s.k, static_cast<uint32_t>(s.rows + s.k));
    for (FloatType type : kTypes) {
      const Values v(type, s.rows, s.k, s.k + s.gap, values);
      for (Codec codec : {Codec::kNf4, Codec::kFp4}) ExpectBlock4(v, codec, s.block, s.tiled);
    }
  }
}

TEST(QuantizeOnDeviceTest, Block4EqualsTheHostAtTheCornersOfTheArithmetic) {
  constexpr int32_t kRows = 17;
  for (int32_t k : {128, 90}) {
    const std::vector<float> values = AdversarialValues(kRows, k);
    for (FloatType type : kTypes) {
      const Values v(type, kRows, k, k, values);
      for (Codec codec : {Codec::kNf4, Codec::kFp4}) {
        ExpectBlock4(v, codec, 64, false);
        if (k % 64 == 0) ExpectBlock4(v, codec, 64, true);
      }
    }
  }
}

TEST(QuantizeOnDeviceTest, Int8RowsEqualTheHost) {
  for (int32_t k : {1, 48, 90, 333, 1000}) {
    for (FloatType type : kTypes) {
      SCOPED_TRACE(fmt::format("k {} type {}", k, static_cast<int>(type)));
      constexpr int32_t kRows = 17;
      const std::vector<float> values =
          k < 48 ? RandomValues(kRows * k, 3) : AdversarialValues(kRows, k);
      const Values v(type, kRows, k, k + 5, values);
      const size_t count = static_cast<size_t>(kRows * k);
      const DeviceBytes codes = Allocate(count), scales = Allocate(kRows * sizeof(float));
      WeightView w;
      w.codec = Codec::kInt8;
      w.n = kRows;
      w.k = w.padded_k = k;
      w.num_segments = 1;
      w.segments[0].rows = kRows;
      w.segments[0].codes = codes.get();
      w.segments[0].scales = reinterpret_cast<const float*>(scales.get());
      OnDevice([&](Stream stream) { QuantizeInt8Rows(w, 0, v.view, stream); });
      const QuantizedMatrix q = quantd::QuantizeInt8Rows(v.host);
      for (size_t i = 0; i < count; ++i) {
        ASSERT_EQ(static_cast<int8_t>(codes.get()[i]), static_cast<int8_t>(q.codes[i]))
            << "row " << i / static_cast<size_t>(k) << " column " << i % static_cast<size_t>(k);
      }
      ASSERT_EQ(std::memcmp(scales.get(), q.scales.data(), kRows * sizeof(float)), 0);
    }
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated

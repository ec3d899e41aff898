// Test helper: paged attention by the kernels under emulation, and by a plain loop in double.
// Header-only.
//
// Tolerance. The kernels for 16-bit types round the weights p before P V and sum the rounded ones,
// so an output errs by at most u / (1 - u) of sum w |v - out|, with u half an ulp of 1 in that type
// and w the exact normalized weights; f16 also rounds to multiples of 2^-24 below 2^-14. The rest
// is f32: a score errs by 4 * 2^-24 sqrt(d) of its sum of magnitudes and enters an exponential,
// twice with the normalization, a soft cap by 2^-21 of itself; the exponential by 2^-20; sums by 4
// * 2^-24 sqrt(context).
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/runtime.h"
#include "kernels/quant/float_types.h"
#include "kernels/quant/kv_codec.h"

namespace quantd::cuda_emulated::attention_testing {

constexpr FloatType kF32 = FloatType::kF32, kF16 = FloatType::kF16, kBF16 = FloatType::kBF16;

/// Bytes of shared memory a block may ask for.
inline constexpr int64_t kAllSharedMemory = 227 << 10;

inline size_t SizeOf(FloatType type) { return type == kF32 ? 4 : 2; }

inline void StoreElement(FloatType type, float value, std::byte* to) {
  if (type == kF32) {
    std::memcpy(to, &value, 4);
  } else {
    const uint16_t bits = type == kF16 ? F16(value).bits : BF16(value).bits;
    std::memcpy(to, &bits, 2);
  }
}

inline float LoadElement(FloatType type, const std::byte* from) {
  float value;
  if (type == kF32) {
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  F16 half;
  half.bits = bits;
  BF16 brain;
  brain.bits = bits;
  return type == kF16 ? static_cast<float>(half) : static_cast<float>(brain);
}

inline float Rounded(FloatType type, float value) {
  std::byte bytes[4];
  StoreElement(type, value, bytes);
  return LoadElement(type, bytes);
}

/// Device memory of exactly `count` elements; guards lie behind.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : data_(static_cast<T*>(DeviceAllocate(count * sizeof(T)))) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  ~DeviceArray() { DeviceFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }

 private:
  T* data_;
};

struct Shape {
  int heads, kv, d;
  FloatType type, cache_type;
  int block_size;
  bool int8 = false;     // the cache, by kv_codec.h
  int window = 0;        // keys a row sees; 0: all
  float softcap = 0.0f;  // 0: none

  int group() const { return heads / kv; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(d)); }
  std::string Name() const {
    return std::to_string(heads) + " heads, " + std::to_string(kv) + " kv, head_dim " +
           std::to_string(d) + ", types " + std::to_string(static_cast<int>(type)) + " " +
           std::to_string(static_cast<int>(cache_type)) + (int8 ? " int8" : "") + ", blocks of " +
           std::to_string(block_size) + ", window " + std::to_string(window) + ", cap " +
           std::to_string(softcap);
  }
};

struct Row {
  int seq, position;
};

inline std::vector<Row> Range(int seq, int first, int end) {
  std::vector<Row> rows;
  for (int position = first; position < end; ++position) rows.push_back({seq, position});
  return rows;
}

inline std::vector<Row> Concat(std::initializer_list<std::vector<Row>> parts) {
  std::vector<Row> rows;
  for (const auto& part : parts) rows.insert(rows.end(), part.begin(), part.end());
  return rows;
}

/// q, K and V of a sequence, by position; the same wherever and with whomever it is batched.
struct Sequence {
  std::vector<float> q, k, v;  // [context, heads * d], [context, kv * d] twice
  // Of an int8 cache, where k and v are codes times scales: [context, kv * d], [context, kv].
  std::vector<int8_t> k_codes, v_codes;
  std::vector<float> k_scales, v_scales;
};

/// Codes and scales of rows of `d` values, which become what a reader of the cache takes.
inline void Quantize(size_t d, std::vector<float>& values, std::vector<int8_t>& codes,
                     std::vector<float>& scales) {
  codes.resize(values.size());
  scales.resize(values.size() / d);
  for (size_t row = 0; row < scales.size(); ++row) {
    uint32_t largest = 0;
    for (size_t i = 0; i < d; ++i) largest = std::max(largest, KvMagnitude(values[row * d + i]));
    const KvScale scale = KvScaleOf(largest);
    scales[row] = scale.scale;
    for (size_t i = row * d; i < (row + 1) * d; ++i) {
      codes[i] = KvCode(values[i], scale);
      values[i] = static_cast<float>(codes[i]) * scale.scale;
    }
  }
}

class Model {
 public:
  explicit Model(const Shape& shape, float q_scale = 2.0f) : shape_(shape), q_scale_(q_scale) {}

  const Sequence& At(int seq) {
    Sequence& s = sequences_[seq];
    if (s.q.empty()) {
      std::mt19937 random(static_cast<uint32_t>(seq) + 1);
      std::normal_distribution<float> normal;
      const auto fill = [&](std::vector<float>& to, int width, FloatType type, float scale) {
        to.resize(static_cast<size_t>(kContext * width * shape_.d));
        for (float& value : to) value = Rounded(type, normal(random) * scale);
      };
      fill(s.q, shape_.heads, shape_.type, q_scale_);
      fill(s.k, shape_.kv, shape_.cache_type, 1.0f);
      fill(s.v, shape_.kv, shape_.cache_type, 1.0f);
      QuantizeAll(s);
    }
    return s;
  }
  const Shape& shape() const { return shape_; }
  /// Replaces V of a position.
  void SetValue(int seq, int position, float value) {
    At(seq);
    auto& v = sequences_[seq].v;
    const int width = shape_.kv * shape_.d;
    std::fill_n(v.begin() + position * width, width, value);
    QuantizeAll(sequences_[seq]);
  }

  static constexpr int kContext = 620;

 private:
  void QuantizeAll(Sequence& s) const {
    if (!shape_.int8) return;
    Quantize(static_cast<size_t>(shape_.d), s.k, s.k_codes, s.k_scales);
    Quantize(static_cast<size_t>(shape_.d), s.v, s.v_codes, s.v_scales);
  }

  Shape shape_;
  float q_scale_;
  std::map<int, Sequence> sequences_;
};

struct Placement {
  int num_seqs = 0;       // 0: as many as the rows have
  int spare_entries = 0;  // behind every block table
  int gap = 8;            // elements of canary behind every row of q and out
  uint32_t seed = 1;      // of the order of blocks
  int64_t shared_memory = kAllSharedMemory;
};

/// out [rows, heads * d] as f32. The cache holds what the rows may read, and NaN everywhere else.
inline std::vector<float> Attend(Model& model, const std::vector<Row>& rows,
                                 const Placement& place = {}) {
  const Shape& shape = model.shape();
  const size_t d = static_cast<size_t>(shape.d), kv = static_cast<size_t>(shape.kv);
  const size_t cols = static_cast<size_t>(shape.heads) * d;
  std::map<int, int> visible, index;  // positions and place in the batch of each sequence
  for (const Row& row : rows) {
    visible[row.seq] = std::max(visible[row.seq], row.position + 1);
    index.try_emplace(row.seq, static_cast<int>(index.size()));
  }
  int blocks = 3, max_blocks = 0;
  for (const auto& [seq, count] : visible) {
    const int needed = (count + shape.block_size - 1) / shape.block_size;
    blocks += needed;
    max_blocks = std::max(max_blocks, needed);
  }
  max_blocks += place.spare_entries;
  std::vector<int32_t> ids(static_cast<size_t>(blocks - 1));
  std::iota(ids.begin(), ids.end(), 1);
  std::shuffle(ids.begin(), ids.end(), std::mt19937(place.seed));

  const int num_seqs = std::max(place.num_seqs, static_cast<int>(index.size()));
  std::vector<int32_t> tables(static_cast<size_t>(num_seqs * max_blocks), 0);
  const size_t element = shape.int8 ? 1 : SizeOf(shape.cache_type);
  const size_t block_elements = kv * static_cast<size_t>(shape.block_size) * d;
  std::vector<std::byte> k(static_cast<size_t>(blocks) * block_elements * element), v;
  if (shape.int8) {
    std::fill(k.begin(), k.end(), std::byte{0x80});  // no code
  } else {
    for (size_t i = 0; i < k.size(); i += element) StoreElement(shape.cache_type, NAN, &k[i]);
  }
  v = k;
  std::vector<float> k_scales(static_cast<size_t>(blocks * shape.block_size) * kv, NAN), v_scales;
  v_scales = k_scales;
  size_t next = 0;
  for (const auto& [seq, count] : visible) {
    const Sequence& from = model.At(seq);
    int32_t* const table = &tables[static_cast<size_t>(index[seq] * max_blocks)];
    for (int b = 0; b * shape.block_size < count; ++b) table[b] = ids[next++];
    for (int t = 0; t < count; ++t) {
      for (size_t h = 0; h < kv; ++h) {
        const size_t block = static_cast<size_t>(table[t / shape.block_size]);
        const size_t slot = static_cast<size_t>(t % shape.block_size);
        const size_t row = (block * kv + h) * static_cast<size_t>(shape.block_size) + slot;
        const size_t from_row = static_cast<size_t>(t) * kv + h;
        if (shape.int8) {
          std::memcpy(&k[row * d], &from.k_codes[from_row * d], d);
          std::memcpy(&v[row * d], &from.v_codes[from_row * d], d);
          k_scales[row] = from.k_scales[from_row];
          v_scales[row] = from.v_scales[from_row];
          continue;
        }
        for (size_t i = 0; i < d; ++i) {
          const size_t to = row * d + i;
          const size_t at = from_row * d + i;
          StoreElement(shape.cache_type, from.k[at], &k[to * element]);
          StoreElement(shape.cache_type, from.v[at], &v[to * element]);
        }
      }
    }
  }
  const size_t stride = cols + static_cast<size_t>(place.gap);
  const size_t bytes = SizeOf(shape.type);
  std::vector<std::byte> q(rows.size() * stride * bytes);
  for (size_t i = 0; i < q.size(); i += bytes) StoreElement(shape.type, NAN, &q[i]);
  const std::vector<std::byte> empty = q;
  std::vector<int32_t> positions, seq_of_row;
  for (size_t r = 0; r < rows.size(); ++r) {
    const Sequence& from = model.At(rows[r].seq);
    for (size_t i = 0; i < cols; ++i) {
      StoreElement(shape.type, from.q[static_cast<size_t>(rows[r].position) * cols + i],
                   &q[(r * stride + i) * bytes]);
    }
    positions.push_back(rows[r].position);
    seq_of_row.push_back(index[rows[r].seq]);
  }

  const AttentionShape attention{shape.heads,   shape.kv,     shape.d,
                                 shape.scale(), shape.window, shape.softcap};
  const int32_t count = static_cast<int32_t>(rows.size());
  const size_t workspace_bytes =
      AttentionWorkspaceBytes(count, attention, max_blocks, shape.block_size);
  const int32_t num_counters = AttentionCounters(count, attention);
  const DeviceArray<std::byte> device_q(q), device_out(empty), device_k(k), device_v(v);
  const DeviceArray<std::byte> workspace(std::max<size_t>(workspace_bytes, 1));
  const DeviceArray<int32_t> device_positions(positions), device_seqs(seq_of_row),
      device_tables(tables),
      counters(std::vector<int32_t>(static_cast<size_t>(std::max(num_counters, 1)), 0));
  const DeviceArray<float> device_k_scales(k_scales), device_v_scales(v_scales);
  const Stream stream = CreateStream();
  const auto matrix = [&](const DeviceArray<std::byte>& array) {
    return Matrix{shape.type, array.data(), count, static_cast<int32_t>(cols),
                  static_cast<int64_t>(stride)};
  };
  Attention(matrix(device_q), attention,
            {device_positions.data(), nullptr, device_seqs.data(), device_tables.data(), num_seqs,
             max_blocks},
            {shape.cache_type, device_k.data(), device_v.data(), blocks, shape.block_size,
             shape.int8 ? device_k_scales.data() : nullptr,
             shape.int8 ? device_v_scales.data() : nullptr},
            matrix(device_out), {workspace.data(), workspace_bytes, counters.data(), num_counters},
            {4, 9, 0, place.shared_memory}, stream);
  EXPECT_TRUE(Synchronize(stream).ok());
  EXPECT_TRUE(FirstError().ok()) << FirstError().ToString();
  DestroyStream(stream);
  for (int32_t i = 0; i < num_counters; ++i) EXPECT_EQ(counters.data()[i], 0) << "counter " << i;

  std::vector<float> out;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t i = 0; i < stride; ++i) {
      const std::byte* const at = device_out.data() + (r * stride + i) * bytes;
      if (i < cols) {
        out.push_back(LoadElement(shape.type, at));
      } else {
        EXPECT_EQ(std::memcmp(at, &empty[(r * stride + i) * bytes], bytes), 0)
            << "wrote behind row " << r;
      }
    }
  }
  return out;
}

/// Half the distance of neighbours of `type` at `magnitude`.
inline double HalfUlp(FloatType type, double magnitude) {
  const int digits = type == kF32 ? 24 : type == kF16 ? 11 : 8;
  const int lowest = type == kF16 ? -14 : -126;
  return std::ldexp(0.5, std::max(std::ilogb(std::max(magnitude, 1e-300)), lowest) - digits + 1);
}

inline bool RoundsWeights(const Shape& s) {
  return s.type != kF32 && (s.int8 || s.type == s.cache_type) &&
         (s.d == 32 || s.d == 64 || s.d == 96 || s.d == 128 || s.d == 256);
}

/// Compares the rows with softmax attention in double.
inline void ExpectIsAttention(Model& model, const std::vector<Row>& rows,
                              const std::vector<float>& out) {
  const Shape& shape = model.shape();
  const size_t d = static_cast<size_t>(shape.d), kv = static_cast<size_t>(shape.kv);
  const size_t heads = static_cast<size_t>(shape.heads), group = heads / kv;
  const double unit = !RoundsWeights(shape) ? 0.0 : HalfUlp(shape.type, 1.0);
  int failures = 0;
  ASSERT_EQ(out.size(), rows.size() * heads * d);
  for (size_t r = 0; r < rows.size(); ++r) {
    const Sequence& s = model.At(rows[r].seq);
    const size_t context = static_cast<size_t>(rows[r].position) + 1;
    const size_t window = static_cast<size_t>(shape.window);
    const size_t first = window > 0 && context > window ? context - window : 0;
    for (size_t h = 0; h < heads; ++h) {
      const float* const q = &s.q[((context - 1) * heads + h) * d];
      std::vector<double> weight(context);
      double largest = -std::numeric_limits<double>::infinity(), magnitude = 0.0, total = 0.0;
      for (size_t t = first; t < context; ++t) {
        double dot = 0.0, sum = 0.0;
        for (size_t i = 0; i < d; ++i) {
          const double product = double{q[i]} * s.k[(t * kv + h / group) * d + i];
          dot += product;
          sum += std::fabs(product);
        }
        weight[t] = dot * shape.scale();
        if (shape.softcap > 0) weight[t] = shape.softcap * std::tanh(weight[t] / shape.softcap);
        largest = std::max(largest, weight[t]);
        magnitude = std::max(magnitude, sum * shape.scale());
      }
      for (size_t t = 0; t < context; ++t) {
        total += weight[t] = t < first ? 0.0 : std::exp(weight[t] - largest);
      }
      const double f32 = 2 * 4 * 0x1p-24 * std::sqrt(static_cast<double>(d)) * magnitude + 0x1p-20 +
                         2 * 0x1p-21 * shape.softcap +
                         4 * 0x1p-24 * std::sqrt(static_cast<double>(context));
      for (size_t i = 0; i < d; ++i) {
        const auto value = [&](size_t t) { return double{s.v[(t * kv + h / group) * d + i]}; };
        double expected = 0.0, spread = 0.0, largest_value = 0.0, sizes = 0.0;
        for (size_t t = 0; t < context; ++t) expected += weight[t] / total * value(t);
        for (size_t t = 0; t < context; ++t) {
          spread += weight[t] / total * std::fabs(value(t) - expected);
          largest_value = std::max(largest_value, std::fabs(value(t) - expected));
          sizes += weight[t] / total * std::fabs(value(t));
        }
        // Over int8 the sum of the weights is of unrounded ones, and P has 127/64 of their range.
        double tolerance = f32 * sizes + (shape.int8 ? unit * sizes : unit / (1 - unit) * spread);
        if (shape.type == kF16 && unit > 0) {
          tolerance +=
              static_cast<double>(context) * 0x1p-25 * (shape.int8 ? 127.0 / 64 : largest_value);
        }
        tolerance += HalfUlp(shape.type, std::fabs(expected) + tolerance);
        const double actual = out[(r * heads + h) * d + i];
        if (!(std::fabs(actual - expected) <= tolerance) && ++failures <= 3) {
          ADD_FAILURE() << shape.Name() << ": row " << r << " (sequence " << rows[r].seq
                        << ", position " << rows[r].position << "), head " << h << ", element " << i
                        << ": " << actual << ", expected " << expected << " within " << tolerance;
        }
      }
    }
  }
}

/// Row for row the same bits. `which[i]` is the row of `whole` that `part`'s row i is.
inline void ExpectSameRows(const std::vector<float>& part, const std::vector<float>& whole,
                           const std::vector<size_t>& which, const std::string& what) {
  const size_t cols = part.size() / which.size();
  for (size_t i = 0; i < which.size(); ++i) {
    EXPECT_EQ(std::memcmp(&part[i * cols], &whole[which[i] * cols], cols * sizeof(float)), 0)
        << what << ", row " << which[i];
  }
}

inline std::vector<size_t> Indices(size_t first, size_t count) {
  std::vector<size_t> which(count);
  std::iota(which.begin(), which.end(), first);
  return which;
}

/// One row, the last, of sequences of these lengths.
inline std::vector<Row> LastRows(const std::vector<int>& contexts) {
  std::vector<Row> rows;
  for (size_t s = 0; s < contexts.size(); ++s)
    rows.push_back({static_cast<int>(s), contexts[s] - 1});
  return rows;
}

inline const std::vector<int>& EdgeContexts() {
  static const std::vector<int> contexts = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257};
  return contexts;
}

}  // namespace quantd::cuda_emulated::attention_testing

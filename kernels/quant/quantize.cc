// The block quantizers; see quantize.h. They run at load time over every weight of a model, so the
// loop over elements is table-driven: about a nanosecond or two an element.
#include "kernels/quant/quantize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/quant/read_row.h"

namespace quantd {
namespace {

/// bitsandbytes divides by the block's largest magnitude clamped to this.
constexpr float kSmallestAbsmax = 1e-38f;

/// Elements [first, first + to.size()) of the flattened row-major matrix as f32.
void ReadFlat(const TensorView& w, int64_t first, std::span<float> to) {
  int64_t row = first / w.cols, col = first % w.cols;
  while (!to.empty()) {
    const size_t run = std::min(to.size(), static_cast<size_t>(w.cols - col));
    ReadRow(w, row++, col, to.first(run));
    to = to.subspan(run);
    col = 0;
  }
}

/// Codec::Encode on [-1, 1] by table. [-1, 1] is cut into cells so narrow that none holds two
/// midpoints; a cell knows the code below its midpoint and the code above. Exact, since the cell of
/// a number is a monotonic function of it: midpoints of lower cells are below, those of higher
/// cells above.
template <typename C>
class CodeTable {
 public:
  CodeTable() {
    constexpr float kInfinity = std::numeric_limits<float>::infinity();
    cells_.fill({kInfinity, 0, 0});
    // Midpoints are found by bisection of Encode itself over the floats' order, so that this table
    // repeats no rule of the codec.
    uint8_t code = C::Encode(-1.0f);
    size_t cell = 0;
    for (float s = -1.0f; s < 1.0f;) {
      const float midpoint = LastWithCode(s, code);
      const size_t at = CellOf(midpoint);
      while (cell < at) cells_[cell++] = {kInfinity, code, code};
      if (midpoint >= 1.0f) break;
      const float next = std::nextafter(midpoint, kInfinity);
      const uint8_t above = C::Encode(next);
      QUANTD_CHECK(cell == at, "two midpoints of a codec in one cell, at {}", midpoint);
      cells_[cell++] = {midpoint, code, above};
      code = above;
      s = next;
    }
    while (cell < kCells) cells_[cell++] = {kInfinity, code, code};
  }

  uint8_t Encode(float s) const {  // s in [-1, 1]
    const Cell& cell = cells_[CellOf(s)];
    return s > cell.midpoint ? cell.above : cell.below;
  }

 private:
  struct Cell {
    float midpoint;
    uint8_t below, above;
  };
  static constexpr size_t kCells = 2049;

  static size_t CellOf(float s) {
    return static_cast<size_t>(static_cast<int32_t>((s + 1.0f) * 1024.0f));
  }

  /// The largest s in [from, 1] with Encode(s) == code == Encode(from).
  static float LastWithCode(float from, uint8_t code) {
    if (C::Encode(1.0f) == code) return 1.0f;
    float low = from, high = 1.0f;
    while (std::nextafter(low, 2.0f) < high) {
      float middle = low + (high - low) / 2;
      if (middle <= low || middle >= high) middle = std::nextafter(low, 2.0f);
      (C::Encode(middle) == code ? low : high) = middle;
    }
    return low;
  }

  std::array<Cell, kCells> cells_;
};

template <typename C>
void EncodeFlat(const TensorView& w, int32_t block, QuantizedMatrix& q) {
  static const CodeTable<C> table;
  const int64_t total = w.rows * w.cols;
  std::vector<float> values(static_cast<size_t>(block));
  for (int64_t first = 0; first < total; first += block) {
    const std::span<float> x(values.data(),
                             static_cast<size_t>(std::min<int64_t>(block, total - first)));
    ReadFlat(w, first, x);
    const float absmax = LargestMagnitude(x);
    q.scales.push_back(absmax);
    const float divisor = std::max(absmax, kSmallestAbsmax);
    if (x.size() == static_cast<size_t>(block)) {
      const float inverse = 1.0f / divisor;
      for (float& v : x) v *= inverse;
    } else {
      for (float& v : x) v /= divisor;
    }
    uint8_t* codes = q.codes.data() + first;
    for (size_t i = 0; i < x.size(); ++i) {
      // Written so that a NaN becomes -1: the comparison with it is false.
      const float low = x[i] > -1.0f ? x[i] : -1.0f;
      codes[i] = table.Encode(low < 1.0f ? low : 1.0f);
    }
  }
}

QuantizedMatrix EmptyMatrix(const TensorView& w, const QuantFormat& format, size_t code_bytes) {
  QuantizedMatrix q;
  q.format = format;
  q.n = w.rows;
  q.k = w.cols;
  q.codes.resize(static_cast<size_t>(w.rows * w.cols) * code_bytes);
  return q;
}

template <typename T>
void FromFloats(std::span<const float> from, uint8_t* to) {
  for (size_t i = 0; i < from.size(); ++i) {
    const T value(from[i]);
    std::memcpy(to + i * sizeof(T), &value, sizeof(T));
  }
}

}  // namespace

QuantizedMatrix PlainMatrix(const TensorView& w, DType to) {
  QuantizedMatrix q = EmptyMatrix(w, QuantFormat::Plain(to), SizeOf(to));
  const size_t row_bytes = static_cast<size_t>(w.cols) * SizeOf(to);
  std::vector<float> values(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    uint8_t* row = q.codes.data() + static_cast<size_t>(r) * row_bytes;
    if (w.dtype == to) {
      std::memcpy(row, w.Rows(r, 1).data, row_bytes);
      continue;
    }
    ReadRow(w, r, 0, values);
    if (to == DType::kF32) std::memcpy(row, values.data(), row_bytes);
    if (to == DType::kF16) FromFloats<F16>(values, row);
    if (to == DType::kBF16) FromFloats<BF16>(values, row);
  }
  return q;
}

QuantizedMatrix QuantizeBlock4(const TensorView& w, Codec codec, int32_t block) {
  QUANTD_CHECK(block > 0, "a block of {} elements", block);
  QuantizedMatrix q = EmptyMatrix(w, QuantFormat::Block4(codec, block, /*nested=*/false), 1);
  q.scales.reserve(static_cast<size_t>((w.rows * w.cols + block - 1) / block));
  if (codec == Codec::kNf4) {
    EncodeFlat<Nf4Codec>(w, block, q);
  } else {
    EncodeFlat<Fp4Codec>(w, block, q);
  }
  return q;
}

const std::vector<float>& DynamicMap() {
  // create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8) of bitsandbytes: for each
  // decade 10^-6 .. 10^0, the middles of 2^i equal steps from 0.1 to 1 times that decade, of both
  // signs. torch.linspace in f32 counts its second half down from the end.
  static const std::vector<float> map = [] {
    std::vector<float> values = {0.0f, 1.0f};
    for (int i = 0; i < 7; ++i) {
      const int steps = 1 << i;
      const float step = (1.0f - 0.1f) / static_cast<float>(steps);
      const auto boundary = [&](int j) {
        return j < (steps + 1) / 2 ? std::fma(step, static_cast<float>(j), 0.1f)
                                   : std::fma(-step, static_cast<float>(steps - j), 1.0f);
      };
      const float decade = static_cast<float>(std::pow(10.0, i - 6));
      for (int j = 0; j < steps; ++j) {
        const float middle = (boundary(j) + boundary(j + 1)) / 2.0f;
        values.push_back(decade * middle);
        values.push_back(-(decade * middle));
      }
    }
    std::sort(values.begin(), values.end());
    return values;
  }();
  return map;
}

void NestScales(QuantizedMatrix& matrix) {
  QUANTD_CHECK(
      matrix.format.scale == ScaleType::kF32 && matrix.format.block.kind == BlockShape::Kind::kFlat,
      "cannot nest the scales of {}", matrix.format.ToString());
  const std::vector<float>& map = DynamicMap();
  std::array<float, 255> midpoints;
  for (size_t i = 0; i < midpoints.size(); ++i) midpoints[i] = (map[i] + map[i + 1]) / 2.0f;

  const std::vector<float> scales = std::move(matrix.scales);
  matrix.scales.clear();
  double sum = 0.0;
  for (float s : scales) sum += s;
  matrix.nested_offset =
      scales.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(scales.size()));
  matrix.nested_map = map;
  matrix.nested_codes.resize(scales.size());
  constexpr size_t kBlock = QuantizedMatrix::kNestedBlock;
  for (size_t first = 0; first < scales.size(); first += kBlock) {
    const size_t count = std::min(kBlock, scales.size() - first);
    std::array<float, kBlock> centred;
    for (size_t i = 0; i < count; ++i) centred[i] = scales[first + i] - matrix.nested_offset;
    const float absmax = LargestMagnitude(std::span<const float>(centred).first(count));
    matrix.nested_absmax.push_back(absmax);
    const float inverse = 1.0f / std::max(absmax, kSmallestAbsmax);
    for (size_t i = 0; i < count; ++i) {
      const auto at = std::lower_bound(midpoints.begin(), midpoints.end(), centred[i] * inverse);
      matrix.nested_codes[first + i] = static_cast<uint8_t>(at - midpoints.begin());
    }
  }
  matrix.format.scale = ScaleType::kNested;
}

QuantizedMatrix QuantizeInt8Rows(const TensorView& w) {
  QuantizedMatrix q = EmptyMatrix(w, QuantFormat::Int8Row(), 1);
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    ReadRow(w, r, 0, row);
    if (w.dtype != DType::kF16) {
      for (float& v : row) v = static_cast<float>(F16(v));
    }
    const float scb = LargestMagnitude(row);
    q.scales.push_back(scb);
    if (scb == 0.0f) continue;  // all codes are zero already
    const float inverse = 127.0f * (1.0f / scb);
    uint8_t* codes = q.codes.data() + static_cast<size_t>(r * w.cols);
    for (size_t i = 0; i < row.size(); ++i) {
      codes[i] = static_cast<uint8_t>(static_cast<int8_t>(std::lrintf(row[i] * inverse)));
    }
  }
  return q;
}

}  // namespace quantd

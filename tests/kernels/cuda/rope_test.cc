// RopeAndStoreKv of rope.cu against ref, over column slices of one fused q, k, v matrix.
#include <gtest/gtest.h>

#include "kernels/ref/ops.h"
#include "tests/kernels/cuda/rows_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using on_device::Array;
using on_device::DTypeOf;
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

constexpr size_t kRows = 6, kBlocks = 4, kBlockSize = 8, kPositions = 32;
// The last two rows are padding: both write to slot 0 of the reserved block.
const std::vector<int32_t> kPositionOfRow = {0, 1, 9, 31, 0, 0}, kSlots = {8, 9, 31, 16, 0, 0};

struct Result {
  std::vector<float> qkv, k, v;  // k, v: the whole cache
};

/// The same rotation by the kernel (of `type`, `cache_type`, `layout`) or by ref in f32.
class Rotation {
 public:
  /// Activations of `type`, their values rounded to `values_type`.
  Rotation(FloatType values_type, FloatType type, FloatType cache_type, const AttentionShape& shape,
           Layout layout)
      : heads_(static_cast<size_t>(shape.num_heads)),
        kv_heads_(static_cast<size_t>(shape.num_kv_heads)),
        d_(static_cast<size_t>(shape.head_dim)),
        rotated_(static_cast<size_t>(shape.rotary_dim > 0 ? shape.rotary_dim : shape.head_dim)),
        shape_(shape),
        values_(Rounded(values_type, Normal(kRows * (heads_ + 2 * kv_heads_) * d_, 1))),
        positions_(kPositionOfRow),
        slots_(kSlots),
        cos_sin_(Table()),
        qkv_(type, kRows, (heads_ + 2 * kv_heads_) * d_, Values(), layout),
        k_(cache_type, kBlocks * kv_heads_ * kBlockSize, d_),
        v_(cache_type, kBlocks * kv_heads_ * kBlockSize, d_) {}

  Result ByKernel() const {
    const Matrix q = qkv_.Cols(0, heads_ * d_), k = qkv_.Cols(heads_ * d_, kv_heads_ * d_),
                 v = qkv_.Cols((heads_ + kv_heads_) * d_, kv_heads_ * d_);
    AttentionArrays batch;
    batch.positions = positions_.data();
    batch.slots = slots_.data();
    const KvArrays cache{static_cast<Matrix>(k_).type, k_.data(), v_.data(), kBlocks, kBlockSize};
    Execute([&](Stream s) { RopeAndStoreKv(q, k, v, cos_sin_.data(), shape_, batch, cache, s); });
    return {qkv_.Read(), k_.Read(), v_.Read()};
  }

  Result ByRef() const {
    const auto q_cols = static_cast<int64_t>(heads_ * d_),
               kv_cols = static_cast<int64_t>(kv_heads_ * d_);
    const TensorView all = qkv_.View();
    const KvLayer cache{DTypeOf(static_cast<Matrix>(k_).type),
                        k_.data(),
                        v_.data(),
                        kBlocks,
                        kBlockSize,
                        shape_.num_kv_heads,
                        shape_.head_dim};
    AttentionBatch batch;
    batch.positions = positions_.span();
    batch.slots = slots_.span();
    ref::RopeAndStoreKv(all.Cols(0, q_cols), all.Cols(q_cols, kv_cols),
                        all.Cols(q_cols + kv_cols, kv_cols), cos_sin_.data(),
                        {.num_heads = shape_.num_heads,
                         .num_kv_heads = shape_.num_kv_heads,
                         .head_dim = shape_.head_dim,
                         .rotary_dim = shape_.rotary_dim},
                        batch, cache);
    return {qkv_.Read(), k_.Read(), v_.Read()};
  }

 private:
  /// Padding rows are alike, so that it does not matter which of them is written last.
  std::vector<float> Values() const {
    std::vector<float> values = values_;
    const size_t cols = values.size() / kRows;
    std::copy_n(values.end() - static_cast<std::ptrdiff_t>(2 * cols), cols,
                values.end() - static_cast<std::ptrdiff_t>(cols));
    return values;
  }
  std::vector<float> Table() const {
    std::vector<float> table;
    for (size_t p = 0; p < kPositions; ++p) {
      for (const bool sine : {false, true}) {
        for (size_t i = 0; i < rotated_ / 2; ++i) {
          const double angle =
              static_cast<double>(p) *
              std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(d_));
          table.push_back(static_cast<float>(sine ? std::sin(angle) : std::cos(angle)));
        }
      }
    }
    return table;
  }

  size_t heads_, kv_heads_, d_, rotated_;
  AttentionShape shape_;
  std::vector<float> values_;
  Array<int32_t> positions_, slots_;
  Array<float> cos_sin_;
  Rows qkv_, k_, v_;
};

/// `actual` near `expected`; where ref left a canary, a NaN, so must the kernel.
void ExpectNearOrUntouched(std::vector<float> actual, const std::vector<float>& expected,
                           double absolute, FloatType type, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size());
  std::vector<double> exact(expected.begin(), expected.end());
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_EQ(std::isnan(actual[i]), std::isnan(exact[i])) << what << ", element " << i;
    if (std::isnan(exact[i])) actual[i] = 0.0f, exact[i] = 0.0;
  }
  ExpectNear(actual, exact, 0.0, absolute, type, what);
}

TEST(CudaRope, RotatesQueriesInPlaceAndStoresKeysAndValues) {
  const AttentionShape shapes[] = {
      {4, 4, 32, 1.0f},
      {8, 2, 64, 1.0f},
      {6, 3, 80, 1.0f},
      {9, 3, 128, 1.0f},
      {2, 2, 6, 1.0f},
      {3, 1, 72, 1.0f},
      {.num_heads = 4, .num_kv_heads = 2, .head_dim = 64, .rotary_dim = 48},
      {.num_heads = 3, .num_kv_heads = 1, .head_dim = 96, .rotary_dim = 10},
      {.num_heads = 2, .num_kv_heads = 2, .head_dim = 6, .rotary_dim = 2}};
  for (const AttentionShape& shape : shapes) {
    for (FloatType type : kTypes) {
      for (FloatType cache_type : kTypes) {
        const std::string what = "head_dim " + std::to_string(shape.head_dim) + ", rotated " +
                                 std::to_string(shape.rotary_dim) + ", " + NameOf(type) +
                                 ", cache " + NameOf(cache_type);
        const Rotation narrow(type, type, cache_type, shape, kNarrow);
        const Rotation wide(type, type, cache_type, shape, kWide);
        const Rotation in_f32(type, FloatType::kF32, FloatType::kF32, shape, kWide);
        const Result actual = wide.ByKernel();
        const Result unrounded = in_f32.ByRef();
        // Two products and a sum of numbers below 6, by the kernel and by ref: six roundings.
        const double arithmetic = 6 * 6 * 0x1p-24;
        ExpectNearOrUntouched(actual.qkv, unrounded.qkv, arithmetic, type, what + ", q");
        ExpectNearOrUntouched(actual.k, unrounded.k, arithmetic, cache_type, what + ", k");
        ExpectNearOrUntouched(actual.v, unrounded.v, 0.0, cache_type, what + ", v");
        const Result scalar = narrow.ByKernel();
        ExpectSame(scalar.qkv, actual.qkv, what + ", alignment, q");
        ExpectSame(scalar.k, actual.k, what + ", alignment, k");
        ExpectSame(scalar.v, actual.v, what + ", alignment, v");
      }
    }
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated

// Rotary embedding (Su et al., 2021; halves paired as Hugging Face does), fused with the store of K
// and V into the paged cache.
//
// Idea: every element is read once and written once; q in place, k and v only to the cache.
// Elements behind rotary_dim are pairs too, which stay as they are. Mapping: blockIdx.x is a row;
// its work items are, in this order, the groups of pairs (i, i + d/2) of the q heads, those of the
// k heads, and the groups of the v heads; blockIdx.y and the thread number an item. A group is
// eight columns by 16-byte accesses where head_dim and the views allow, else one.
//
// Bytes moved an element (16-bit types): 4, and the row's cosines and sines from L1. Bound: memory
// bandwidth in prefill, launch latency in decode.
//
// Rounding: f32, one rounding on store, q to its own type, k and v to the cache's.
//
// An int8 cache has a kernel of its own, because a head's largest magnitude comes before its codes:
// a warp is a k or v head, and goes through it twice, the second time from L1; product and sum of
// the rotation are rounded apart, as the host does, so that the codes are the same bytes.
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/quant/kv_codec.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;

template <typename T, typename C>
struct RopeArgs {
  T* q;
  const T* k;
  const T* v;
  int64_t q_stride, k_stride, v_stride;
  const float* cos_sin;
  const int32_t* positions;
  const int32_t* slots;
  C* cache_k;
  C* cache_v;
  int num_heads, num_kv_heads, head_dim, block_size;
  unsigned rotated;  // elements of a head that are, even
};

/// Where the two groups of the `col`-th columns of d / 2 lie in a head.
struct Pair {
  unsigned low, high;
  bool rotated;
};
__device__ __forceinline__ Pair PairAt(unsigned col, unsigned d, unsigned rotated) {
  const unsigned half = rotated / 2;
  if (col < half) return {col, col + half, true};
  return {col + half, col + d / 2, false};
}

/// The elements of pair `p` of the head at `from`, rotated if they are to be; `table`: the cosines
/// of its position, sines behind.
template <int W, typename T>
__device__ __forceinline__ void Rotate(const T* from, const float* table, const Pair& p,
                                       float (&low)[W], float (&high)[W]) {
  float c[W], s[W], x[W], y[W];
  Load<W>(from + p.low, x);
  Load<W>(from + p.high, y);
  if (!p.rotated) {
#pragma unroll
    for (int i = 0; i < W; ++i) low[i] = x[i], high[i] = y[i];
    return;
  }
  Load<W>(table + p.low, c);
  Load<W>(table + p.high, s);  // half behind
#pragma unroll
  for (int i = 0; i < W; ++i) {
    low[i] = x[i] * c[i] - y[i] * s[i];
    high[i] = y[i] * c[i] + x[i] * s[i];
  }
}

template <typename T, typename C, int W>
__global__ void __launch_bounds__(kThreads) RopeAndStoreKvKernel(RopeArgs<T, C> a) {
  const int64_t row = blockIdx.x;
  const unsigned d = static_cast<unsigned>(a.head_dim);
  const unsigned pairs = d / 2 / W, values = d / W;  // groups in a head
  const unsigned rotated = static_cast<unsigned>(a.num_heads + a.num_kv_heads) * pairs;
  const unsigned item = blockIdx.y * blockDim.x + threadIdx.x;
  if (item >= rotated + static_cast<unsigned>(a.num_kv_heads) * values) return;

  const bool is_value = item >= rotated;
  const unsigned of_kind = is_value ? item - rotated : item;
  const unsigned per_head = is_value ? values : pairs;
  unsigned head = of_kind / per_head;
  const unsigned col = (of_kind - head * per_head) * W;
  const bool is_query = !is_value && head < static_cast<unsigned>(a.num_heads);
  if (!is_value && !is_query) head -= static_cast<unsigned>(a.num_heads);

  int64_t to = 0;  // in the cache: [block, head, slot in block, d]
  if (!is_query) {
    const int slot = a.slots[row];
    const int block = slot / a.block_size;
    to = ((static_cast<int64_t>(block) * a.num_kv_heads + head) * a.block_size +
          (slot - block * a.block_size)) *
         d;
  }
  if (is_value) {
    float v[W];
    Load<W>(a.v + row * a.v_stride + head * d + col, v);
    Store<W>(a.cache_v + to + col, v);
    return;
  }

  const float* const table = a.cos_sin + static_cast<int64_t>(a.positions[row]) * a.rotated;
  const Pair pair = PairAt(col, d, a.rotated);
  T* const q = a.q + row * a.q_stride + head * d;
  const T* const from = is_query ? q : a.k + row * a.k_stride + head * d;
  float low[W], high[W];
  Rotate<W>(from, table, pair, low, high);
  if (is_query) {
    Store<W>(q + pair.low, low);
    Store<W>(q + pair.high, high);
  } else {
    Store<W>(a.cache_k + to + pair.low, low);
    Store<W>(a.cache_k + to + pair.high, high);
  }
}

template <typename T>
struct RopeInt8Args {
  RopeArgs<T, int8_t> rope;
  float* k_scales;
  float* v_scales;
  unsigned query_blocks;  // of blockIdx.y: pairs of q; the blocks behind have a head a warp
};

/// Element `i` of a k head after rotation: the same bits as on the host.
template <typename T>
__device__ __forceinline__ float RotatedElement(const T* from, const float* table, unsigned rotated,
                                                unsigned i) {
  if (i >= rotated) return ToFloat(from[i]);
  const unsigned half = rotated / 2;
  const bool is_low = i < half;
  const unsigned pair = is_low ? i : i - half;
  const float cosine = table[pair], sine = table[pair + half];
  const float x = ToFloat(from[i]), y = ToFloat(from[is_low ? i + half : pair]);
  const float product = __fmul_rn(x, cosine), other = __fmul_rn(y, sine);
  return is_low ? __fsub_rn(product, other) : __fadd_rn(product, other);
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads) RopeAndStoreInt8KvKernel(RopeInt8Args<T> args) {
  const RopeArgs<T, int8_t>& a = args.rope;
  const int64_t row = blockIdx.x;
  const unsigned d = static_cast<unsigned>(a.head_dim);
  const float* const table = a.cos_sin + static_cast<int64_t>(a.positions[row]) * a.rotated;
  if (blockIdx.y < args.query_blocks) {
    const unsigned item = blockIdx.y * blockDim.x + threadIdx.x, pairs = d / 2 / W;
    if (item >= static_cast<unsigned>(a.num_heads) * pairs) return;
    const unsigned head = item / pairs, col = (item - head * pairs) * W;
    T* const q = a.q + row * a.q_stride + head * d;
    const Pair pair = PairAt(col, d, a.rotated);
    float low[W], high[W];
    Rotate<W>(q, table, pair, low, high);
    Store<W>(q + pair.low, low);
    Store<W>(q + pair.high, high);
    return;
  }
  const unsigned kv_heads = static_cast<unsigned>(a.num_kv_heads);
  const unsigned warp =
      ((blockIdx.y - args.query_blocks) * blockDim.x + threadIdx.x) / 32;  // k heads, then v heads
  if (warp >= 2 * kv_heads) return;
  const bool is_key = warp < kv_heads;
  const unsigned head = is_key ? warp : warp - kv_heads, lane = threadIdx.x % 32;
  const T* const from =
      is_key ? a.k + row * a.k_stride + head * d : a.v + row * a.v_stride + head * d;
  const auto value = [&](unsigned i) {
    return is_key ? RotatedElement(from, table, a.rotated, i) : ToFloat(from[i]);
  };
  uint32_t largest = 0;
  for (unsigned i = lane; i < d; i += 32) largest = max(largest, KvMagnitude(value(i)));
  const KvScale scale = KvScaleOf(__reduce_max_sync(~0u, largest));
  const int slot = a.slots[row], block = slot / a.block_size;
  const int64_t to = (static_cast<int64_t>(block) * a.num_kv_heads + head) * a.block_size +
                     (slot - block * a.block_size);
  int8_t* const codes = (is_key ? a.cache_k : a.cache_v) + to * d;
  for (unsigned i = lane; i < d; i += 32) codes[i] = KvCode(value(i), scale);
  if (lane == 0) (is_key ? args.k_scales : args.v_scales)[to] = scale.scale;
}

int RotatedOf(const AttentionShape& shape) {
  return shape.rotary_dim > 0 ? shape.rotary_dim : shape.head_dim;
}
/// True when groups of eight columns are halves of pairs, or stay, as a whole.
bool HasWideGroups(const AttentionShape& shape) {
  return shape.head_dim % (2 * kGroup) == 0 && RotatedOf(shape) % (2 * kGroup) == 0;
}

template <typename T, typename C>
RopeArgs<T, C> ArgsOf(Matrix q, Matrix k, Matrix v, const float* cos_sin,
                      const AttentionShape& shape, const AttentionArrays& batch,
                      const KvArrays& cache) {
  return {static_cast<T*>(q.data),
          static_cast<const T*>(k.data),
          static_cast<const T*>(v.data),
          q.stride,
          k.stride,
          v.stride,
          cos_sin,
          batch.positions,
          batch.slots,
          static_cast<C*>(cache.k),
          static_cast<C*>(cache.v),
          shape.num_heads,
          shape.num_kv_heads,
          shape.head_dim,
          cache.block_size,
          static_cast<unsigned>(RotatedOf(shape))};
}

void RopeAndStoreInt8Kv(Matrix q, Matrix k, Matrix v, const float* cos_sin,
                        const AttentionShape& shape, const AttentionArrays& batch,
                        const KvArrays& cache, Stream stream) {
  const bool wide = IsWide(q) && IsAligned16(cos_sin) && HasWideGroups(shape);
  WithType(q.type, [&](auto type) {
    WithWidth(wide, [&](auto width) {
      using T = typename decltype(type)::Type;
      constexpr int kWidth = decltype(width)::value;
      const int queries = CeilDiv(shape.num_heads * (shape.head_dim / 2) / kWidth, kThreads);
      const int heads = CeilDiv(2 * shape.num_kv_heads * 32, kThreads);
      const RopeInt8Args<T> args{ArgsOf<T, int8_t>(q, k, v, cos_sin, shape, batch, cache),
                                 cache.k_scales, cache.v_scales, static_cast<unsigned>(queries)};
      LAUNCH((RopeAndStoreInt8KvKernel<T, kWidth>),
             dim3(static_cast<unsigned>(q.rows), static_cast<unsigned>(queries + heads)),
             dim3(kThreads), 0, stream, args);
    });
  });
}

}  // namespace

void RopeAndStoreKv(Matrix q, Matrix k, Matrix v, const float* cos_sin, const AttentionShape& shape,
                    const AttentionArrays& batch, const KvArrays& cache, Stream stream) {
  if (q.rows == 0) return;
  if (cache.k_scales != nullptr) {
    return RopeAndStoreInt8Kv(q, k, v, cos_sin, shape, batch, cache, stream);
  }
  const bool wide = IsWide(q) && IsWide(k) && IsWide(v) && IsAligned16(cos_sin) &&
                    IsAligned16(cache.k) && IsAligned16(cache.v) && HasWideGroups(shape);
  WithType(q.type, [&](auto type) {
    WithType(cache.type, [&](auto cache_type) {
      WithWidth(wide, [&](auto width) {
        using T = typename decltype(type)::Type;
        using C = typename decltype(cache_type)::Type;
        constexpr int kWidth = decltype(width)::value;
        const RopeArgs<T, C> args = ArgsOf<T, C>(q, k, v, cos_sin, shape, batch, cache);
        const int half = shape.head_dim / 2;
        const int items =
            ((shape.num_heads + shape.num_kv_heads) * half + shape.num_kv_heads * shape.head_dim) /
            kWidth;
        const int threads = items < kThreads ? CeilDiv(items, 32) * 32 : kThreads;
        const dim3 grid(static_cast<unsigned>(q.rows),
                        static_cast<unsigned>(CeilDiv(items, threads)));
        LAUNCH((RopeAndStoreKvKernel<T, C, kWidth>), grid, dim3(static_cast<unsigned>(threads)), 0,
               stream, args);
      });
    });
  });
}

}  // namespace quantd::QUANTD_CUDA_NS

// Activations that are quantized: replaced by what their codes stand for, or the codes themselves,
// for products of codes. The arithmetic is kernels/quant/activation.h's.
//
// Idea: two passes over what shares a scale, the second from L1 or L2: the extremes, then codes or
// values. Nothing of it can be contracted into an fma (a product is rounded to an integer, or
// subtracted from before), and division is IEEE's, so ref's bits come out. Mapping: a block a row,
// a thread eight columns at a time; with scales of groups a warp a group. Bytes: 2 read twice (the
// second time from cache), 2 or 1 written an element. Bound: DRAM bandwidth for many rows, the
// latency of two passes for few.
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/reduce.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

template <typename T>
struct RoundTo {
  __device__ __forceinline__ float operator()(float v) const { return ToFloat(FromFloat<T>(v)); }
};

/// The extremes of what shares a scale, 0 included; NaNs are passed over.
struct Extremes {
  float low = 0.0f;
  float high = 0.0f;

  __device__ __forceinline__ void Add(float low_, float high_) {
    low = low_ < low ? low_ : low;
    high = high < high_ ? high_ : high;
  }
};

__device__ __forceinline__ Extremes WarpExtremes(Extremes e) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    e.Add(__shfl_xor_sync(kAllLanes, e.low, step), __shfl_xor_sync(kAllLanes, e.high, step));
  }
  return e;
}

/// Those of the elements that thread `first` of `threads` has of `count` at `x`.
template <typename T>
__device__ __forceinline__ Extremes MyExtremes(const ActivationQuant& q, const T* x, int count,
                                               bool aligned, int first, int threads) {
  const bool symmetric = q.kind != ActivationQuant::Kind::kInt8TokenAsym;
  Extremes e;
  for (int col = first * kGroup; col < count; col += threads * kGroup) {
    float v[kGroup];
    LoadUpTo8(x, col, count, aligned, v);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) e.Add(v[i], symmetric ? fabsf(v[i]) : v[i]);
  }
  return e;
}

/// Those of the block's whole row, in every thread.
template <typename T>
__device__ __forceinline__ Extremes RowExtremes(const ActivationQuant& q, const T* x, int count,
                                                bool aligned) {
  __shared__ Extremes parts[kWarps];
  const int thread = static_cast<int>(threadIdx.x);
  Extremes e = WarpExtremes(MyExtremes(q, x, count, aligned, thread, kThreads));
  if (thread % kWarp == 0) parts[thread / kWarp] = e;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kWarps; ++i) e.Add(parts[i].low, parts[i].high);
  return e;
}

/// out = the values of `count` elements at x, by thread `first` of `threads`.
template <typename T>
__device__ __forceinline__ void ReplaceValues(const ActivationQuant& q, const Extremes& e,
                                              const T* x, T* out, int count, bool aligned,
                                              int first, int threads) {
  const RoundTo<T> round;
  const ActivationScale scale = ActivationScaleOf(q, e.low, e.high, round);
  for (int col = first * kGroup; col < count; col += threads * kGroup) {
    float v[kGroup];
    LoadUpTo8(x, col, count, aligned, v);
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      v[i] = ActivationValue(scale, ActivationCode(q, scale, v[i], round));
    }
    if (aligned && col + kGroup <= count) {
      Store<kGroup>(out + col, v);
    } else {
      for (int i = 0; i < kGroup && col + i < count; ++i) out[col + i] = FromFloat<T>(v[i]);
    }
  }
}

/// `aligned`: rows of x and out are 16-byte aligned.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ReplaceInputKernel(ActivationQuant q, Matrix x, Matrix out, bool aligned) {
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const T* const from = static_cast<const T*>(x.data) + row * x.stride;
  T* const to = static_cast<T*>(out.data) + row * out.stride;
  if (q.kind != ActivationQuant::Kind::kFp8Group) {
    const Extremes e = RowExtremes(q, from, x.cols, aligned);
    ReplaceValues(q, e, from, to, x.cols, aligned, thread, kThreads);
    return;
  }
  const bool aligned_groups = aligned && q.group % kGroup == 0;
  const int lane = thread % kWarp;
  for (int64_t first = int64_t{thread / kWarp} * q.group; first < x.cols;
       first += int64_t{kWarps} * q.group) {
    const int count = x.cols - first < q.group ? static_cast<int>(x.cols - first) : q.group;
    const Extremes e =
        WarpExtremes(MyExtremes(q, from + first, count, aligned_groups, lane, kWarp));
    ReplaceValues(q, e, from + first, to + first, count, aligned_groups, lane, kWarp);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    QuantizeTokensKernel(ActivationQuant q, Matrix x, TokenCodes out, bool aligned) {
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const T* const from = static_cast<const T*>(x.data) + row * x.stride;
  const RoundTo<T> round;
  const Extremes e = RowExtremes(q, from, x.cols, aligned);
  const ActivationScale scale = ActivationScaleOf(q, e.low, e.high, round);
  bool is_nan = false;
  for (int col = thread * kGroup; col < out.padded_k; col += kThreads * kGroup) {
    float v[kGroup];
    LoadUpTo8(from, col, x.cols, aligned, v);
    uint32_t words[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < kGroup; ++i) {
      if (col + i >= x.cols) continue;
      const float code = ActivationCode(q, scale, v[i], round);
      is_nan = is_nan || code != code;
      const uint32_t byte = IsFp8(q.kind)  ? E4M3Codec::Encode(code)
                            : code == code ? static_cast<uint32_t>(static_cast<int>(code)) & 0xffu
                                           : 0u;
      words[i / 4] |= byte << 8 * (i % 4);
    }
    *reinterpret_cast<uint2*>(out.codes + row * out.padded_k + col) =
        make_uint2(words[0], words[1]);
  }
  const bool spoiled = __syncthreads_or(is_nan) != 0 && !IsFp8(q.kind);
  if (thread != 0) return;
  out.scales[row] = spoiled ? std::bit_cast<float>(0x7fc00000u) : scale.scale;
  if (out.counts != nullptr) out.counts[row] = 0;
}

}  // namespace

void ReplaceInput(const ActivationQuant& q, Matrix x, Matrix out, Stream stream) {
  if (x.rows == 0) return;
  const bool aligned = HasAlignedRows(x) && HasAlignedRows(out);
  WithType(x.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    LAUNCH((ReplaceInputKernel<T>), static_cast<unsigned>(x.rows), kThreads, 0, stream, q, x, out,
           aligned);
  });
}

void QuantizeTokens(const ActivationQuant& q, Matrix x, const TokenCodes& out, Stream stream) {
  if (x.rows == 0) return;
  const bool aligned = HasAlignedRows(x);
  WithType(x.type, [&](auto type) {
    using T = typename decltype(type)::Type;
    LAUNCH((QuantizeTokensKernel<T>), static_cast<unsigned>(x.rows), kThreads, 0, stream, q, x, out,
           aligned);
  });
}

}  // namespace quantd::QUANTD_CUDA_NS

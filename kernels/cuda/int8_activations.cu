// LLM.int8's activations: int8 codes, a scale a row, and where the outliers are.
//
// Idea: bitsandbytes' arithmetic as ref has it (through f16; elements not below the threshold are
// outliers, so a NaN is one; scale = largest magnitude below it; code = rint(x * (127 / scale))),
// without a word from the host: outliers are a bit mask and a short list a row, whatever their
// number, so a captured graph fits every input.
// Mapping: a block a row, a thread eight columns at a time (one byte of the mask). The list is made
// by warp 0 from the mask, with a prefix sum over its words: ascending, the same in every run.
// Outliers of the call (OutlierScope::kCall) take three kernels: masks of all rows, their union,
// codes.
// Bytes: 2 read twice (the second time from L1 or L2), 1 + 1/8 written an element.
// Bound: DRAM bandwidth for many rows, the latency of two passes for few. Not yet timed on
// hardware.
#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/int8.cuh"
#include "kernels/cuda/numeric.cuh"
#include "kernels/cuda/ops.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr size_t kPartAlignment = 256;

/// Bits of |x| through f16: as integers they are in the order of the magnitudes, NaN the largest.
__device__ __forceinline__ uint32_t Magnitude(float x) {
  return std::bit_cast<uint32_t>(FloatOfF16(BitsOfF16(x))) & 0x7fffffffu;
}

__device__ __forceinline__ bool IsOutlier(uint32_t magnitude, float threshold) {
  return threshold > 0.0f && !(std::bit_cast<float>(magnitude) < threshold);
}

/// Writes the outlier bits of every row.
template <typename T>
__global__ __launch_bounds__(kThreads) void Int8MarkKernel(Matrix x, float threshold,
                                                           Int8Activations out, bool aligned) {
  const int64_t r = blockIdx.x;
  const T* row = static_cast<const T*>(x.data) + r * x.stride;
  auto* mask = reinterpret_cast<uint8_t*>(out.masks + r * (out.padded_k / 32));
  for (int chunk = static_cast<int>(threadIdx.x); chunk < out.padded_k / 8; chunk += kThreads) {
    float v[8];
    LoadUpTo8(row, 8 * chunk, x.cols, aligned, v);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) bits |= IsOutlier(Magnitude(v[i]), threshold) ? 1u << i : 0;
    mask[chunk] = static_cast<uint8_t>(bits);
  }
}

/// Writes the union of all rows' bits: a block 32 words, a warp every eighth row.
__global__ __launch_bounds__(kThreads) void Int8UnionKernel(int rows, Int8Activations out) {
  __shared__ uint32_t parts[kWarps][32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int words = out.padded_k / 32, word = static_cast<int>(blockIdx.x) * 32 + lane;
  uint32_t bits = 0;
  if (word < words) {
#pragma unroll 8
    for (int r = warp; r < rows; r += kWarps) bits |= out.masks[int64_t{r} * words + word];
  }
  parts[warp][lane] = bits;
  __syncthreads();
  if (warp != 0 || word >= words) return;
  for (int i = 1; i < kWarps; ++i) bits |= parts[i][lane];
  out.call_mask[word] = bits;
}

/// The list of the set bits of `mask`, ascending, by one warp.
__device__ __forceinline__ void ListOutliers(const uint32_t* mask, int words, int lane,
                                             int32_t* columns, int32_t* count) {
  int total = 0;
  for (int base = 0; base < words; base += 32) {
    uint32_t bits = base + lane < words ? mask[base + lane] : 0;
    if (!__any_sync(~0u, bits != 0)) continue;
    const int mine = __popc(bits);
    int upto = mine;  // bits of the words up to this lane's
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
      const int below = __shfl_up_sync(~0u, upto, d);
      if (lane >= d) upto += below;
    }
    for (int at = total + upto - mine; bits != 0 && at < Int8Activations::kMaxOutliers; ++at) {
      columns[at] = (base + lane) * 32 + __ffs(static_cast<int>(bits)) - 1;
      bits &= bits - 1;
    }
    total += __shfl_sync(~0u, upto, 31);
  }
  if (lane == 0) *count = total;
}

template <typename T, bool kPerCall>
__global__ __launch_bounds__(kThreads) void Int8QuantizeKernel(Matrix x, float threshold,
                                                               Int8Activations out, bool aligned) {
  __shared__ uint32_t parts[kWarps];
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t r = blockIdx.x;
  const int words = out.padded_k / 32;
  const T* row = static_cast<const T*>(x.data) + r * x.stride;
  uint32_t* mask = out.masks + r * words;
  auto* mask_bytes = reinterpret_cast<uint8_t*>(mask);

  // Elements below the threshold count for the scale even where another row makes their column an
  // outlier column.
  uint32_t largest = 0;
  for (int chunk = tid; chunk < out.padded_k / 8; chunk += kThreads) {
    float v[8];
    LoadUpTo8(row, 8 * chunk, x.cols, aligned, v);
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t magnitude = Magnitude(v[i]);
      if (IsOutlier(magnitude, threshold)) {
        bits |= 1u << i;
      } else if (magnitude > largest) {
        largest = magnitude;
      }
    }
    mask_bytes[chunk] = kPerCall ? reinterpret_cast<const uint8_t*>(out.call_mask)[chunk]
                                 : static_cast<uint8_t>(bits);
  }
  largest = __reduce_max_sync(~0u, largest);
  if (tid % 32 == 0) parts[tid / 32] = largest;
  __syncthreads();  // of the mask's bytes too
#pragma unroll
  for (int i = 0; i < kWarps; ++i) largest = parts[i] > largest ? parts[i] : largest;
  const float scale = std::bit_cast<float>(largest);
  if (tid == 0) out.scales[r] = scale;
  if (tid < 32) {
    ListOutliers(mask, words, tid, out.columns + r * Int8Activations::kMaxOutliers, out.counts + r);
  }

  // Without a threshold a NaN makes the scale a NaN, and all codes zero: it shows in the result.
  const float inverse = scale > 0.0f ? __fdiv_rn(127.0f, scale) : 0.0f;
  int8_t* codes = out.codes + r * out.padded_k;
  for (int chunk = tid; chunk < out.padded_k / 8; chunk += kThreads) {
    float v[8];
    LoadUpTo8(row, 8 * chunk, x.cols, aligned, v);
    const uint32_t bits = mask_bytes[chunk];
    uint32_t packed[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float q = rintf(__fmul_rn(FloatOfF16(BitsOfF16(v[i])), inverse));
      if ((bits >> i & 1) != 0 || !(fabsf(q) <= 127.0f)) continue;
      packed[i / 4] |= (static_cast<uint32_t>(static_cast<int>(q)) & 0xffu) << 8 * (i % 4);
    }
    *reinterpret_cast<uint2*>(codes + 8 * chunk) = make_uint2(packed[0], packed[1]);
  }
}

template <typename T>
void Quantize(Matrix x, float threshold, bool per_call, const Int8Activations& out, Stream stream) {
  const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 16 == 0 &&
                       x.stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  const unsigned rows = static_cast<unsigned>(x.rows);
  if (!per_call) {
    LAUNCH((Int8QuantizeKernel<T, false>), rows, kThreads, 0, stream, x, threshold, out, aligned);
    return;
  }
  const unsigned word_blocks = static_cast<unsigned>((out.padded_k / 32 + 31) / 32);
  LAUNCH((Int8MarkKernel<T>), rows, kThreads, 0, stream, x, threshold, out, aligned);
  LAUNCH((Int8UnionKernel), word_blocks, kThreads, 0, stream, x.rows, out);
  LAUNCH((Int8QuantizeKernel<T, true>), rows, kThreads, 0, stream, x, threshold, out, aligned);
}

size_t RoundUp(size_t bytes) { return (bytes + kPartAlignment - 1) & ~(kPartAlignment - 1); }

/// Lays the arrays out from `data` (which may be null); gives the bytes they take.
size_t LayOut(void* data, int32_t m, int32_t k, Int8Activations& a) {
  auto* at = static_cast<unsigned char*>(data);
  size_t used = 0;
  const auto place = [&](auto*& array, size_t count) {
    if (at != nullptr)
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at + used);
    used += RoundUp(count * sizeof(*array));
  };
  const size_t rows = static_cast<size_t>(m);
  a.padded_k = (k + 63) / 64 * 64;
  const size_t words = static_cast<size_t>(a.padded_k) / 32;
  place(a.codes, rows * static_cast<size_t>(a.padded_k));
  place(a.scales, rows);
  place(a.counts, rows);
  place(a.columns, rows * Int8Activations::kMaxOutliers);
  place(a.masks, rows * words);
  place(a.call_mask, words);
  return used;
}

}  // namespace

size_t Int8ActivationBytes(int32_t m, int32_t k) {
  Int8Activations a;
  return LayOut(nullptr, m, k, a);
}

Int8Activations Int8ActivationsAt(void* data, int32_t m, int32_t k) {
  Int8Activations a;
  LayOut(data, m, k, a);
  return a;
}

void QuantizeInt8(Matrix x, float threshold, bool per_call, const Int8Activations& out,
                  Stream stream) {
  if (x.rows == 0) return;
  switch (x.type) {
    case FloatType::kF32: return Quantize<float>(x, threshold, per_call, out, stream);
    case FloatType::kF16: return Quantize<F16>(x, threshold, per_call, out, stream);
    case FloatType::kBF16: return Quantize<BF16>(x, threshold, per_call, out, stream);
  }
}

}  // namespace quantd::QUANTD_CUDA_NS

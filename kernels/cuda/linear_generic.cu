// LinearGeneric: y = x W^T + bias for every format and type, on CUDA cores.
//
// Idea. A tile of weights is decoded to f32 in shared memory, a tile of x beside it, and threads
// keep a block of sums in registers. What a format means is one struct, a reader, with the
// Value of an element; everything else is shared.
//
// Mapping. A block owns 64 outputs and 8 or 64 tokens and walks k in steps of 32 columns. Its 256
// threads are four groups of 64; group i adds columns 8 i .. 8 i + 7 of every step, so that small
// shapes keep four warps' worth of sums going; a thread owns 1 x 8 or 8 x 8 (outputs x tokens)
// sums. At the end ((group 0 + group 1) + group 2) + group 3: the order of additions is a function
// of k only.
//
// Bytes moved: each weight once per 8 or 64 tokens, x once per 64 outputs. Expected bound: the
// decode (a division and a few loads per weight for blocks that cross rows) for few tokens, FFMA
// and shared memory for many. This is the path of correctness; formats that matter have their own
// kernels.
#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/weight_decode.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kTileN = 64;
constexpr int kStepK = 32;
constexpr int kGroups = 4;
constexpr int kGroupK = kStepK / kGroups;
constexpr int kThreads = 64 * kGroups;

struct GenericArgs {
  WeightView w;
  Matrix x;
  Matrix y;
  const float* bias = nullptr;
  bool round_weights = false;  // to x's type
  float values[16] = {};       // of the 4-bit codes
};

/// Plain floats of type T.
template <typename T>
struct PlainReader {
  static __device__ __forceinline__ float Value(const WeightView& w, const float*,
                                                const WeightSegment& segment, int row, int col) {
    return ToFloat(
        reinterpret_cast<const T*>(segment.codes)[static_cast<int64_t>(row) * w.k + col]);
  }
};

/// Codes of kBits bits with scales and zero points of any kind.
template <int kBits>
struct CodeReader {
  static __device__ __forceinline__ float Value(const WeightView& w, const float* values,
                                                const WeightSegment& segment, int row, int col) {
    float code = 0.0f;
    if constexpr (kBits == 4) {
      const NibblePlace place = PlaceOfNibble(row, col, w.padded_k);
      const uint8_t pair = segment.codes[place.byte];
      code = values[place.high ? pair >> 4 : pair & 15];
    } else {
      code = RowMajorCode<kBits>(w, segment, row, col);
    }
    return Dequantized(w, code, BlockOf(w, segment, row, col));
  }
};

/// `v` rounded to `type`.
__device__ __forceinline__ float Rounded(FloatType type, float v) {
  if (type == FloatType::kBF16) return ToFloat(FromFloat<BF16>(v));
  if (type == FloatType::kF16) return ToFloat(FromFloat<F16>(v));
  return v;
}

template <typename Reader, int kTileM>
__global__ void __launch_bounds__(kThreads) LinearGenericKernel(GenericArgs args) {
  constexpr int kThreadN = kTileM / 8;  // outputs of a thread
  constexpr int kThreadM = 8;           // tokens of a thread
  __shared__ float w_tile[kStepK][kTileN + 1];
  __shared__ float x_tile[kStepK][kTileM + 1];
  __shared__ float sums[kTileM][kTileN + 1];
  __shared__ float values[16];
  const WeightView& w = args.w;
  const int thread = static_cast<int>(threadIdx.x);
  const int group = thread / 64, place = thread % 64;
  const int first_n = static_cast<int>(blockIdx.x) * kTileN;
  const int first_m = static_cast<int>(blockIdx.y) * kTileM;
  // Neighbouring threads own neighbouring outputs: outputs n + i * (64 / kThreadN).
  const int thread_n = place % (kTileN / kThreadN),
            thread_m = place / (kTileN / kThreadN) * kThreadM;
  if (thread < 16) values[thread] = args.values[thread];
  __syncthreads();

  float acc[kThreadN][kThreadM] = {};
  for (int k = 0; k < w.k; k += kStepK) {
    const int col = thread % kStepK;
    for (int row = thread / kStepK; row < kTileN; row += kThreads / kStepK) {
      float v = 0.0f;
      if (first_n + row < w.n && k + col < w.k) {
        const WeightSegment segment = SegmentOfRow(w, first_n + row);
        v = Reader::Value(w, values, segment, first_n + row - segment.first_row, k + col);
        if (args.round_weights) v = Rounded(args.x.type, v);
      }
      w_tile[col][row] = v;
    }
    for (int row = thread / kStepK; row < kTileM; row += kThreads / kStepK) {
      const bool inside = first_m + row < args.x.rows && k + col < w.k;
      x_tile[col][row] =
          inside ? LoadFloat(args.x.type, args.x.data,
                             static_cast<int64_t>(first_m + row) * args.x.stride + k + col)
                 : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int c = group * kGroupK; c < (group + 1) * kGroupK; ++c) {
      float ws[kThreadN];
#pragma unroll
      for (int i = 0; i < kThreadN; ++i) ws[i] = w_tile[c][thread_n + i * (kTileN / kThreadN)];
#pragma unroll
      for (int j = 0; j < kThreadM; ++j) {
        const float xs = x_tile[c][thread_m + j];
#pragma unroll
        for (int i = 0; i < kThreadN; ++i) acc[i][j] += ws[i] * xs;
      }
    }
    __syncthreads();
  }

  for (int g = 0; g < kGroups; ++g) {
    if (g == group) {
#pragma unroll
      for (int i = 0; i < kThreadN; ++i) {
#pragma unroll
        for (int j = 0; j < kThreadM; ++j) {
          float& sum = sums[thread_m + j][thread_n + i * (kTileN / kThreadN)];
          sum = g == 0 ? acc[i][j] : sum + acc[i][j];
        }
      }
    }
    __syncthreads();
  }
  const int n = first_n + thread % kTileN;
  for (int row = thread / kTileN; row < kTileM; row += kThreads / kTileN) {
    if (first_m + row >= args.y.rows || n >= w.n) continue;
    float sum = sums[row][thread % kTileN];
    if (args.bias != nullptr) sum += args.bias[n];
    StoreFloat(args.y.type, args.y.data, static_cast<int64_t>(first_m + row) * args.y.stride + n,
               sum);
  }
}

template <typename Reader>
void Launch(const GenericArgs& args, Stream stream) {
  const auto grid = [&](int tile_m) {
    return dim3(static_cast<unsigned>(CeilDiv(args.w.n, kTileN)),
                static_cast<unsigned>(CeilDiv(args.x.rows, tile_m)));
  };
  if (args.x.rows <= 16) {
    LAUNCH((LinearGenericKernel<Reader, 8>), grid(8), dim3(kThreads), 0, stream, args);
  } else {
    LAUNCH((LinearGenericKernel<Reader, 64>), grid(64), dim3(kThreads), 0, stream, args);
  }
}

}  // namespace

void LinearGeneric(const WeightView& w, Matrix x, const float* bias, Matrix y, bool round_weights,
                   Stream stream) {
  // gridDim.y counts token tiles and is 16 bits wide.
  constexpr int kMaxRows = 65535 * 64;
  for (int first = 0; first < x.rows; first += kMaxRows) {
    GenericArgs args{w, x, y, bias, round_weights};
    if (const float* table = TableOf(w.codec)) std::copy_n(table, 16, args.values);
    args.x.rows = args.y.rows = std::min(kMaxRows, x.rows - first);
    args.x.data = static_cast<char*>(x.data) + first * x.stride * BytesOf(x.type);
    args.y.data = static_cast<char*>(y.data) + first * y.stride * BytesOf(y.type);
    switch (w.codec) {
      case Codec::kF32: Launch<PlainReader<float>>(args, stream); break;
      case Codec::kF16: Launch<PlainReader<F16>>(args, stream); break;
      case Codec::kBF16: Launch<PlainReader<BF16>>(args, stream); break;
      case Codec::kInt8:
      case Codec::kUInt8:
      case Codec::kE4M3: Launch<CodeReader<8>>(args, stream); break;
      case Codec::kUInt2: Launch<CodeReader<2>>(args, stream); break;
      case Codec::kNf4:
      case Codec::kFp4:
      case Codec::kInt4:
      case Codec::kUInt4:
      case Codec::kE2M1: Launch<CodeReader<4>>(args, stream); break;
    }
  }
}

}  // namespace quantd::QUANTD_CUDA_NS

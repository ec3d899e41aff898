// Ops that move or combine rows element by element: embedding, gather, gated activation, soft cap,
// bias, token feedback.
//
// Idea: one pass, nothing shared. Mapping: blockIdx.x is a row, blockIdx.y a chunk of 256 groups of
// its columns, a thread owns one group: eight columns by 16-byte accesses, or one column where a
// view is not aligned for that. Neighbouring threads touch neighbouring addresses, and no index is
// divided.
//
// Bytes moved an element (16-bit types): embed and gathers 4 (plus 4 a
// column from L2 where columns are gathered), gated activation 6, bias 4 plus 4 of bias
// per column from L2; soft cap 8 (f32). All are bound by memory for large row counts and by launch
// latency in decode.
//
// Rounding: f32 inside, one rounding on store; moves without change of type are bit for bit.
#include <cmath>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ops.h"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kThreads = 256;

/// Rows to copy from: those of a plain weight's segments, or of one matrix.
struct RowSource {
  const void* data[WeightView::kMaxSegments] = {};
  int32_t first_row[WeightView::kMaxSegments] = {};
  int32_t num_segments = 0;
  int64_t stride = 0;
};

template <typename From, typename To, int W>
__global__ void __launch_bounds__(kThreads)
    CopyRowsKernel(RowSource source, const int32_t* ids, float scale, To* out, int64_t out_stride,
                   int cols) {
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (col >= cols) return;
  int32_t id = ids[blockIdx.x];
  const void* data = source.data[0];
  int32_t first_row = 0;
#pragma unroll
  for (int s = 1; s < WeightView::kMaxSegments; ++s) {  // constant indices: no local memory
    if (s < source.num_segments && id >= source.first_row[s]) {
      data = source.data[s];
      first_row = source.first_row[s];
    }
  }
  id -= first_row;
  const From* const from = static_cast<const From*>(data) + id * source.stride + col;
  To* const to = out + static_cast<int64_t>(blockIdx.x) * out_stride + col;
  if constexpr (std::is_same_v<From, To>) {
    if (scale == 1.0f) return Copy<W>(from, to);
  }
  float v[W];
  Load<W>(from, v);
#pragma unroll
  for (int i = 0; i < W; ++i) v[i] *= scale;
  Store<W>(to, v);
}

/// Bits only: T is an unsigned integer.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    GatherColumnsKernel(const T* x, int64_t stride, const int32_t* columns, T* out,
                        int64_t out_stride, int cols) {
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (col >= cols) return;
  out[static_cast<int64_t>(blockIdx.x) * out_stride + col] =
      x[static_cast<int64_t>(blockIdx.x) * stride + columns[col]];
}

/// silu(g) = g / (1 + exp(-g)), and GELU's tanh approximation the same with a cubic of g: exp
/// overflows to infinity below -88, which gives the zero it should. expf and the division are the
/// accurate ones; the kernel waits for memory anyway.
template <typename T, int W>
__global__ void __launch_bounds__(kThreads)
    GatedActivationKernel(const T* gate_up, int64_t stride, bool gelu_tanh, T* out,
                          int64_t out_stride, int cols) {
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (col >= cols) return;
  const T* const gates = gate_up + static_cast<int64_t>(blockIdx.x) * stride + col;
  float gate[W], up[W];
  Load<W>(gates, gate);
  Load<W>(gates + cols, up);
#pragma unroll
  for (int i = 0; i < W; ++i) {
    const float g = gate[i];
    // sqrt(8 / pi) (g + 0.044715 g^3)
    const float exponent = gelu_tanh ? g * fmaf(0.07135481627f * g, g, 1.595769122f) : g;
    gate[i] = g / (1.0f + expf(-exponent)) * up[i];
  }
  Store<W>(out + static_cast<int64_t>(blockIdx.x) * out_stride + col, gate);
}

__global__ void __launch_bounds__(kThreads)
    SoftCapKernel(float* x, int64_t stride, float cap, int cols) {
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (col >= cols) return;
  float* const p = x + static_cast<int64_t>(blockIdx.x) * stride + col;
  *p = cap * tanhf(*p / cap);
}

template <typename T, int W>
__global__ void __launch_bounds__(kThreads)
    AddBiasKernel(T* y, int64_t stride, const float* bias, int cols) {
  const int col = static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * W;
  if (col >= cols) return;
  T* const p = y + static_cast<int64_t>(blockIdx.x) * stride + col;
  float v[W], b[W];
  Load<W>(p, v);
  Load<W>(bias + col, b);
#pragma unroll
  for (int i = 0; i < W; ++i) v[i] += b[i];
  Store<W>(p, v);
}

__global__ void __launch_bounds__(kThreads)
    FeedBackTokensKernel(int32_t* ids, const int32_t* source, const int32_t* sampled, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count && source[i] >= 0) ids[i] = sampled[source[i]];
}

struct Grid {
  dim3 blocks;
  dim3 threads;
};

/// Blocks for `rows` rows of `cols` columns in groups of `width`; narrow rows get small blocks.
Grid GridOf(int rows, int cols, int width) {
  const int groups = CeilDiv(cols, width);
  const int threads = groups < kThreads ? CeilDiv(groups, 32) * 32 : kThreads;
  return {dim3(static_cast<unsigned>(rows), static_cast<unsigned>(CeilDiv(groups, threads))),
          dim3(static_cast<unsigned>(threads))};
}

void CopyRows(const RowSource& source, FloatType type, bool wide, const int32_t* ids, float scale,
              const Matrix& out, Stream stream) {
  WithType(type, [&](auto from) {
    WithType(out.type, [&](auto to) {
      WithWidth(wide, [&](auto width) {
        using From = typename decltype(from)::Type;
        using To = typename decltype(to)::Type;
        constexpr int kWidth = decltype(width)::value;
        const Grid grid = GridOf(out.rows, out.cols, kWidth);
        LAUNCH((CopyRowsKernel<From, To, kWidth>), grid.blocks, grid.threads, 0, stream, source,
               ids, scale, static_cast<To*>(out.data), out.stride, out.cols);
      });
    });
  });
}

FloatType TypeOf(Codec plain) {
  return plain == Codec::kF32   ? FloatType::kF32
         : plain == Codec::kF16 ? FloatType::kF16
                                : FloatType::kBF16;
}

}  // namespace

void Embed(const WeightView& table, const int32_t* ids, float scale, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  const FloatType type = TypeOf(table.codec);
  RowSource source;
  source.num_segments = table.num_segments;
  source.stride = table.k;
  bool wide = IsWide(out) && table.k * BytesOf(type) % 16 == 0;
  for (int s = 0; s < table.num_segments; ++s) {
    source.data[s] = table.segments[s].codes;
    source.first_row[s] = table.segments[s].first_row;
    wide = wide && IsAligned16(source.data[s]);
  }
  CopyRows(source, type, wide, ids, scale, out, stream);
}

void GatherRows(Matrix x, const int32_t* rows, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  RowSource source;
  source.data[0] = x.data;
  source.num_segments = 1;
  source.stride = x.stride;
  CopyRows(source, x.type, IsWide(x) && IsWide(out), rows, 1.0f, out, stream);
}

void GatherColumns(Matrix x, const int32_t* columns, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  const Grid grid = GridOf(out.rows, out.cols, 1);
  if (x.type == FloatType::kF32) {
    LAUNCH((GatherColumnsKernel<uint32_t>), grid.blocks, grid.threads, 0, stream,
           static_cast<const uint32_t*>(x.data), x.stride, columns,
           static_cast<uint32_t*>(out.data), out.stride, out.cols);
  } else {
    LAUNCH((GatherColumnsKernel<uint16_t>), grid.blocks, grid.threads, 0, stream,
           static_cast<const uint16_t*>(x.data), x.stride, columns,
           static_cast<uint16_t*>(out.data), out.stride, out.cols);
  }
}

void GatedActivation(Matrix gate_up, bool gelu_tanh, Matrix out, Stream stream) {
  if (out.rows == 0) return;
  WithType(out.type, [&](auto type) {
    WithWidth(IsWide(gate_up) && IsWide(out), [&](auto width) {
      using T = typename decltype(type)::Type;
      constexpr int kWidth = decltype(width)::value;
      const Grid grid = GridOf(out.rows, out.cols, kWidth);
      LAUNCH((GatedActivationKernel<T, kWidth>), grid.blocks, grid.threads, 0, stream,
             static_cast<const T*>(gate_up.data), gate_up.stride, gelu_tanh,
             static_cast<T*>(out.data), out.stride, out.cols);
    });
  });
}

void SoftCap(Matrix x, float cap, Stream stream) {
  if (x.rows == 0) return;
  const Grid grid = GridOf(x.rows, x.cols, 1);
  LAUNCH(SoftCapKernel, grid.blocks, grid.threads, 0, stream, static_cast<float*>(x.data), x.stride,
         cap, x.cols);
}

void AddBias(Matrix y, const float* bias, Stream stream) {
  if (y.rows == 0) return;
  WithType(y.type, [&](auto type) {
    WithWidth(IsWide(y) && IsAligned16(bias), [&](auto width) {
      using T = typename decltype(type)::Type;
      constexpr int kWidth = decltype(width)::value;
      const Grid grid = GridOf(y.rows, y.cols, kWidth);
      LAUNCH((AddBiasKernel<T, kWidth>), grid.blocks, grid.threads, 0, stream,
             static_cast<T*>(y.data), y.stride, bias, y.cols);
    });
  });
}

void FeedBackTokens(int32_t* ids, const int32_t* source, const int32_t* sampled, int32_t count,
                    Stream stream) {
  if (count == 0) return;
  const Grid grid = GridOf(CeilDiv(count, kThreads), kThreads, 1);
  LAUNCH(FeedBackTokensKernel, grid.blocks, grid.threads, 0, stream, ids, source, sampled, count);
}

}  // namespace quantd::QUANTD_CUDA_NS

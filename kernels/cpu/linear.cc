// What comes before the micro-kernels: choosing the path, packing activations into tiles, and
// handing panels to threads. Work of at most some microseconds stays on the caller: waking a parked
// thread costs as much.
#include "kernels/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/ceil_div.h"
#include "kernels/cpu/linear_op.h"
#include "kernels/host_memory.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t AlignUp(int64_t bytes) { return CeilDiv(bytes, 64) * 64; }

const LinearKernels& KernelsOf(CpuIsa isa) {
  switch (isa) {
#if QUANTD_CPU_ISAS > 3
    case CpuIsa::kAvx512Bf16: return LinearKernelsAvx512Bf16();
#endif
#if QUANTD_CPU_ISAS > 2
    case CpuIsa::kAvx512Vnni: return LinearKernelsAvx512Vnni();
#endif
#if QUANTD_CPU_ISAS > 1
    case CpuIsa::kAvx512: return LinearKernelsAvx512();
#endif
    default: break;  // SupportedIsas names none that was not compiled
  }
  return LinearKernelsAvx2();
}

/// Multiply-adds that take a core about as long as waking another one (some 5 microseconds).
constexpr int64_t kMinParallelWork = int64_t{1} << 18;
/// Panels of one piece of work, at least: the widest micro-kernel's group.
constexpr int64_t kPanelsPerChunk = 4;
/// Pieces a thread should get, so that a core that is slower or taken away is compensated.
constexpr int64_t kChunksPerThread = 8;

/// Values of unsigned codes less CodeCentre. Those of two bits stand four times: a lookup may see
/// the next code's bits.
constexpr float kCentredUInt4[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr float kCentredUInt2[16] = {-2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1};

const float* TableFor(Codec codec) {
  switch (codec) {
    case Codec::kUInt4: return kCentredUInt4;
    case Codec::kUInt2: return kCentredUInt2;
    default: return TableOf(codec);
  }
}

template <typename T>
void Gather(const uint8_t* from, const int32_t* columns, int64_t count, uint8_t* to) {
  for (int64_t c = 0; c < count; ++c) {
    reinterpret_cast<T*>(to)[c] = reinterpret_cast<const T*>(from)[columns[c]];
  }
}

/// int8 on both sides: LLM.int8, and rows of int8 under int8 activations.
bool MultipliesIntegers(const CpuPackedWeight& w, const ActivationQuant& activation) {
  using Kind = ActivationQuant::Kind;
  if (activation.kind == Kind::kInt8Outlier) return true;
  if (w.packed_segments()[0].row_sums == nullptr) return false;
  if (!ReplacesInput(activation.kind) || IsFp8(activation.kind)) return false;
  // Of the libraries themselves, torchao's Int8Tensor does.
  return !activation.reference ||
         (activation.kind == Kind::kInt8Token && w.format().scale == ScaleType::kF32 &&
          activation.rounding == ActivationQuant::Rounding::kScale);
}

/// LinearCall::rounds_steps.
bool RoundsSteps(const ActivationQuant& activation, DType x) {
  return activation.reference && x != DType::kF32;
}

}  // namespace

LinearOp::LinearOp(CpuIsa isa, ThreadPool& pool, MemoryAccount& account)
    : kernels_(KernelsOf(isa)),
      quantize_(QuantizeKernelsFor(isa)),
      replace_(ReplaceKernelsFor(isa)),
      pool_(pool),
      account_(account) {}

LinearPath LinearOp::PathFor(const CpuPackedWeight& w, const ActivationQuant& activation,
                             DType x) const {
  const bool pairs = kernels_.bf16_pairs && x == DType::kBF16;
  const Codec codec = w.format().codec;
  switch (codec) {
    case Codec::kF32: return LinearPath::kF32F32;
    case Codec::kF16: return LinearPath::kF16F32;
    case Codec::kBF16: return pairs ? LinearPath::kBF16Pairs : LinearPath::kBF16F32;
    default: break;
  }
  const bool elements = w.block_columns() == 0 || RoundsSteps(activation, x);
  switch (codec) {
    case Codec::kInt8:
      if (MultipliesIntegers(w, activation)) return LinearPath::kInt8Int8;
      [[fallthrough]];
    case Codec::kUInt8: return elements ? LinearPath::kInt8Elements : LinearPath::kInt8F32;
    case Codec::kE4M3:
      return elements ? LinearPath::kE4M3Elements
             : pairs  ? LinearPath::kE4M3Pairs
                      : LinearPath::kE4M3F32;
    case Codec::kUInt2:
      return elements ? LinearPath::kTable2Elements
             : pairs  ? LinearPath::kTable2Pairs
                      : LinearPath::kTable2F32;
    default:
      return elements ? LinearPath::kTable4Elements
             : pairs  ? LinearPath::kTable4Pairs
                      : LinearPath::kTable4F32;
  }
}

XLayout LinearOp::LayoutFor(LinearPath path) const {
  switch (path) {
    case LinearPath::kTable4Pairs:
    case LinearPath::kTable2Pairs:
    case LinearPath::kE4M3Pairs:
    case LinearPath::kBF16Pairs: return XLayout::kBF16Pairs;
    case LinearPath::kInt8Int8: return kernels_.int8_layout;
    default: return XLayout::kF32;
  }
}

uint8_t* LinearOp::Workspace(Buffer& buffer, int64_t bytes) {
  if (static_cast<int64_t>(buffer.bytes()) < bytes) {
    buffer = Buffer();  // before its successor exists: the workspace is never held twice
    auto grown = AllocateHost(static_cast<size_t>(bytes), MemoryComponent::kWorkspace, account_);
    QUANTD_CHECK(grown.ok(), "{}", Message(grown.status()));
    buffer = std::move(grown).value();
  }
  return buffer.as<uint8_t>();
}

TensorView LinearOp::Prepare(const CpuPackedWeight& w, const ActivationQuant& activation,
                             bool replace, const TensorView& x) {
  const int32_t* columns = w.columns();
  if (!replace && columns == nullptr) return x;
  const int64_t size = static_cast<int64_t>(SizeOf(x.dtype));
  const int64_t row_bytes = AlignUp(x.cols * size);
  const int64_t scratch = replace && columns != nullptr ? pool_.num_threads() : 0;
  uint8_t* base = Workspace(input_, (x.rows + scratch) * row_bytes);
  TensorView out(x.dtype, base, x.rows, x.cols);
  out.stride = row_bytes / size;
  pool_.Run(x.rows, [&](int64_t row, int worker) {
    uint8_t* to = base + row * row_bytes;
    const uint8_t* from = static_cast<const uint8_t*>(x.data) + row * x.stride * size;
    if (replace) {
      uint8_t* replaced = columns == nullptr ? to : base + (x.rows + worker) * row_bytes;
      replace_.replace_row(activation, x, row, replaced);
      from = replaced;
    }
    if (columns == nullptr) return;
    (size == 4 ? Gather<uint32_t> : Gather<uint16_t>)(from, columns, x.cols, to);
  });
  return out;
}

void LinearOp::SumPieces(LinearCall& call, const TensorView& x) {
  const CpuPackedWeight& w = *call.weight;
  const int64_t block = std::min(w.block_columns(), w.k());
  const int64_t last = w.k() - (w.blocks_per_row() - 1) * block;
  call.pieces =
      (w.blocks_per_row() - 1) * CeilDiv(block, kScaledPiece) + CeilDiv(last, kScaledPiece);
  auto* sums = reinterpret_cast<float*>(Workspace(sums_, call.m * call.pieces * 4));
  call.sums = sums;
  const int64_t tiles = CeilDiv(call.m, call.rows_per_tile);
  pool_.Run(tiles, [&](int64_t t, int) {
    const int64_t row = t * call.rows_per_tile;
    kernels_.sum_columns(x, row, std::min(call.rows_per_tile, call.m - row), block,
                         sums + row * call.pieces);
  });
}

void LinearOp::PackFloatTiles(LinearCall& call, const TensorView& x, XLayout layout) {
  const int64_t padded_k = call.weight->padded_k();
  if (call.m == 1 && x.cols == padded_k &&
      ((layout == XLayout::kBF16Pairs) || (layout == XLayout::kF32 && x.dtype == DType::kF32))) {
    call.x = static_cast<const uint8_t*>(x.data);  // one row is its own tile
    return;
  }
  const int64_t tiles = CeilDiv(call.m, call.rows_per_tile);
  uint8_t* base = Workspace(tiles_, tiles * call.tile_bytes);
  call.x = base;
  const auto pack = [&](int64_t t, int) {
    const int64_t row = t * call.rows_per_tile;
    kernels_.pack_floats(x, row, std::min(call.rows_per_tile, call.m - row), layout, padded_k,
                         base + t * call.tile_bytes);
  };
  pool_.Run(tiles, pack);
}

void LinearOp::PackInt8Tiles(LinearCall& call, const TensorView& x,
                             const ActivationQuant& activation) {
  const int64_t padded_k = call.weight->padded_k();
  const int64_t m = call.m;
  const int64_t tiles = CeilDiv(m, call.rows_per_tile);
  const bool outliers = activation.kind == ActivationQuant::Kind::kInt8Outlier;
  const bool shared = outliers && activation.scope == ActivationQuant::OutlierScope::kCall;
  const float threshold = activation.threshold;
  Int8Activations& q = call.int8;
  q.mask_words = outliers ? CeilDiv(x.cols, 64) : 0;
  q.shared_mask = shared;

  // Workspace: row scales and zero points, outlier flags, masks (one, or one a row), then a row of
  // floats and a row of codes for each thread.
  const int64_t threads = pool_.num_threads();
  const int64_t scales_at = 0;
  const int64_t zeros_at = scales_at + AlignUp(m * 4);
  const int64_t flags_at = zeros_at + AlignUp(m * 4);
  const int64_t masks_at = flags_at + AlignUp(m);
  const int64_t masks = shared ? 1 : m;
  const int64_t rows_at = masks_at + AlignUp(masks * q.mask_words * 8);
  const int64_t row_bytes = AlignUp(padded_k * 4) + AlignUp(padded_k);
  uint8_t* base = Workspace(int8_, rows_at + threads * row_bytes);
  auto* scales = reinterpret_cast<float*>(base + scales_at);
  auto* zeros = reinterpret_cast<int32_t*>(base + zeros_at);
  uint8_t* flags = base + flags_at;
  auto* mask = reinterpret_cast<uint64_t*>(base + masks_at);
  q.row_scales = scales;
  q.row_zeros = zeros;
  q.any_outlier = flags;
  q.outliers = mask;
  std::memset(mask, 0, static_cast<size_t>(masks * q.mask_words) * 8);
  std::memset(flags, 0, static_cast<size_t>(m));
  if (shared && threshold > 0.0f) {
    bool any = false;
    auto* scratch = reinterpret_cast<float*>(base + rows_at);
    for (int64_t row = 0; row < m; ++row) {
      quantize_.through_f16(x, row, padded_k, scratch);
      any |= quantize_.find_outliers(scratch, x.cols, threshold, mask);
    }
    std::memset(flags, any ? 1 : 0, static_cast<size_t>(m));
  }

  uint8_t* tile_base = Workspace(tiles_, tiles * call.tile_bytes);
  call.x = tile_base;
  pool_.Run(tiles, [&](int64_t t, int worker) {
    const int64_t first = t * call.rows_per_tile;
    const int64_t rows = std::min(call.rows_per_tile, m - first);
    auto* scratch = reinterpret_cast<float*>(base + rows_at + worker * row_bytes);
    auto* codes =
        reinterpret_cast<int8_t*>(base + rows_at + worker * row_bytes + AlignUp(padded_k * 4));
    uint8_t* tile = tile_base + t * call.tile_bytes;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      if (outliers) {
        quantize_.through_f16(x, row, padded_k, scratch);
        if (!shared && threshold > 0.0f) {
          flags[row] =
              quantize_.find_outliers(scratch, x.cols, threshold, mask + row * q.mask_words);
        }
        const float largest =
            quantize_.quantize(scratch, padded_k, threshold, shared ? mask : nullptr, codes);
        scales[row] = largest * kInt8Step;
        zeros[row] = 0;
      } else {
        const ActivationScale s = replace_.codes(activation, x, row, codes);
        std::fill(codes + x.cols, codes + padded_k, int8_t{0});
        scales[row] = s.scale;
        zeros[row] = std::isnan(s.scale) ? 0 : static_cast<int32_t>(s.zero_point);
      }
      if (kernels_.int8_layout == XLayout::kU8Quads) {
        for (int64_t c = 0; c < padded_k; c += 4) {
          uint32_t quad;
          std::memcpy(&quad, codes + c, 4);
          quad ^= 0x80808080u;  // q + 128
          std::memcpy(tile + (c / 4 * rows + r) * 4, &quad, 4);
        }
      } else {
        for (int64_t c = 0; c < padded_k; c += 4) {
          const int16_t quad[4] = {codes[c], codes[c + 2], codes[c + 1], codes[c + 3]};
          std::memcpy(tile + (c / 4 * rows + r) * 8, quad, 8);
        }
      }
    }
  });
}

void LinearOp::Run(const CpuPackedWeight& w, const ActivationQuant& activation, const TensorView& x,
                   const float* bias, const TensorView& y) {
  if (x.rows == 0) return;
  LinearCall call;
  call.weight = &w;
  call.path = PathFor(w, activation, x.dtype);
  call.table = TableFor(w.format().codec);
  call.m = x.rows;
  // Rows spread evenly over the fewest tiles.
  call.rows_per_tile = CeilDiv(call.m, CeilDiv(call.m, kernels_.max_rows_per_tile));
  const XLayout layout = LayoutFor(call.path);
  call.tile_bytes = call.rows_per_tile * w.padded_k() * XBytes(layout);
  call.rounds_steps = RoundsSteps(activation, x.dtype);
  const bool integers = call.path == LinearPath::kInt8Int8;
  const TensorView input = Prepare(w, activation, ReplacesInput(activation.kind) && !integers, x);
  call.x_plain = input;
  call.bias = bias;
  call.y = y;
  if (integers) {
    PackInt8Tiles(call, input, activation);
  } else {
    PackFloatTiles(call, input, layout);
    if (w.format().zero != ZeroType::kNone && w.block_columns() > 0) SumPieces(call, input);
  }

  const int64_t panels = w.num_panels();
  if (call.m * panels * kPanelRows * w.k() < kMinParallelWork) {
    kernels_.run(call, 0, panels);
    return;
  }
  const int64_t wanted = CeilDiv(panels, pool_.num_threads() * kChunksPerThread);
  const int64_t per_chunk = CeilDiv(wanted, kPanelsPerChunk) * kPanelsPerChunk;
  pool_.Run(CeilDiv(panels, per_chunk), [&](int64_t chunk, int) {
    kernels_.run(call, chunk * per_chunk, std::min(panels, (chunk + 1) * per_chunk));
  });
}

}  // namespace quantd

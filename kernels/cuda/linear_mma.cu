// LinearMma: which weights it takes, how k is split, and which kernel of linear_mma_table.cu,
// linear_mma_zeros.cu and linear_mma_plain.cu runs. Host code only; idea, mapping, bytes and bound
// are in linear_mma.cuh.
#include "kernels/cuda/linear_mma.h"

#include <algorithm>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/linear_mma_tiles.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kMaxTokens = 64;  // of a block
// Bound on partial sums; a call that would need more walks all splits in one block.
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;

bool IsTable(const WeightView& w) { return TableOf(w.codec) != nullptr; }

/// Tiles of eight tokens a block takes for m tokens.
int TokenTilesFor(const WeightView& w, int m) {
  return m <= 8 ? 1 : m <= 16 ? 2 : m <= 32 || w.paired ? 4 : 8;
}

int TokenGroupsFor(const WeightView& w, int m) { return CeilDiv(m, 8 * TokenTilesFor(w, m)); }

int64_t PartialBytes(const MmaPlan& plan, int m) {
  return int64_t{4} * plan.splits * m * plan.row_groups * kMmaGroupTiles * kTileRows;
}

/// Whether a block can walk all splits of 64 tokens: some compute capabilities have 99 KiB of
/// shared memory a block.
bool HasRoomForWholeK(const DeviceLimits& device) {
  return MmaGeometry<true, 8>::kBytesWholeK <= device.shared_memory;
}

/// Whether splits are blocks of their own: not when the tokens alone keep the device busy.
bool SplitsAreBlocks(const WeightView& w, const MmaPlan& plan, int m, const DeviceLimits& device) {
  if (plan.splits == 1) return false;
  if (m <= kMaxTokens || w.paired || !HasRoomForWholeK(device)) return true;
  return plan.row_groups * TokenGroupsFor(w, m) < device.multiprocessors &&
         PartialBytes(plan, m) <= kMaxPartialBytes;
}

/// Tokens of one launch, so that partial sums stay within bounds.
int TokensOfLaunch(const WeightView& w, const MmaPlan& plan, int m, const DeviceLimits& device) {
  if (m <= kMaxTokens || !SplitsAreBlocks(w, plan, m, device)) return m;
  const int64_t groups = kMaxPartialBytes / PartialBytes(plan, kMaxTokens);
  return static_cast<int>(std::min<int64_t>(m, std::max<int64_t>(1, groups) * kMaxTokens));
}

}  // namespace

MmaPlan MmaPlanOf(const WeightView& w, int multiprocessors) {
  MmaPlan plan;
  plan.k_tiles = CeilDiv(w.k, kTileCols);
  plan.row_groups = CeilDiv(w.row_tiles, kMmaGroupTiles);
  // Two blocks run on a multiprocessor at a time. Time is counted in k tiles of a block: the waves
  // of blocks, each with a start worth about kStart tiles, then the addition of the splits.
  constexpr int64_t kStart = 6, kScale = 8;
  const int64_t resident = 2 * static_cast<int64_t>(multiprocessors);
  int64_t best = -1;
  for (int tiles = CeilDiv(plan.k_tiles, kMmaSplitUnit) * kMmaSplitUnit; tiles > 0;
       tiles -= kMmaSplitUnit) {
    const int splits = CeilDiv(plan.k_tiles, tiles);
    const int64_t waves = (int64_t{plan.row_groups} * splits + resident - 1) / resident;
    const int64_t cost = kScale * waves * (tiles + kStart) + (splits > 1 ? kScale + splits : 0);
    if (best >= 0 && cost >= best) continue;
    best = cost;
    plan.tiles_per_split = tiles;
    plan.splits = splits;
  }
  return plan;
}

bool HasLinearMma(const WeightView& w, FloatType x) {
  if (x == FloatType::kF32) return false;
  if (IsTable(w)) return w.order == BlockOrder::kTiled;
  const Codec same = x == FloatType::kBF16 ? Codec::kBF16 : Codec::kF16;
  return w.codec == same && w.k % 8 == 0;
}

size_t LinearMmaWorkspaceBytes(const WeightView& w, int32_t m, const DeviceLimits& device) {
  const MmaPlan plan = MmaPlanOf(w, device.multiprocessors);
  if (m == 0 || !SplitsAreBlocks(w, plan, m, device)) return 0;
  return static_cast<size_t>(PartialBytes(plan, TokensOfLaunch(w, plan, m, device)));
}

int32_t LinearMmaCounters(const WeightView& w, int32_t m, const DeviceLimits& device) {
  const MmaPlan plan = MmaPlanOf(w, device.multiprocessors);
  if (m == 0 || !SplitsAreBlocks(w, plan, m, device)) return 0;
  return plan.row_groups * TokenGroupsFor(w, TokensOfLaunch(w, plan, m, device));
}

void LinearMma(const WeightView& w, Matrix x, const float* bias, Matrix y,
               const Workspace& workspace, const DeviceLimits& device, Stream stream) {
  if (x.rows == 0) return;
  LinearMmaArgs args;
  args.w = w;
  args.plan = MmaPlanOf(w, device.multiprocessors);
  args.x_stride = x.stride;
  args.x_aligned = HasAlignedRows(x);
  args.whole_k = args.plan.splits > 1 && !SplitsAreBlocks(w, args.plan, x.rows, device);
  args.y_type = y.type;
  args.y_stride = y.stride;
  args.bias = bias;
  args.partials = static_cast<float*>(workspace.data);
  args.counters = workspace.counters;
  if (IsTable(w)) {
    std::copy_n(TableOf(w.codec), 16, args.values);
    args.scale_shift = w.paired || w.scale == Stored::kF32 ? 2 : w.scale == Stored::kNested ? 0 : 1;
    // Smaller sums of codes, smaller corrections; what is added is not of the codes' kind.
    if (w.codec == Codec::kUInt4 && !w.added_zero) {
      args.zero_center = 8.0f;
      for (float& v : args.values) v -= args.zero_center;
    }
  }
  const int tokens = TokensOfLaunch(w, args.plan, x.rows, device);
  for (int first = 0; first < x.rows; first += tokens) {
    args.m = std::min(tokens, x.rows - first);
    args.x = static_cast<char*>(x.data) + first * x.stride * BytesOf(x.type);
    args.y = static_cast<char*>(y.data) + first * y.stride * BytesOf(y.type);
    const int token_tiles = TokenTilesFor(w, args.m);
    if (w.paired) {
      LaunchLinearMmaZeros(args, x.type, token_tiles, stream);
    } else if (IsTable(w)) {
      LaunchLinearMmaTable(args, x.type, token_tiles, stream);
    } else {
      LaunchLinearMmaPlain(args, x.type, token_tiles, stream);
    }
  }
}

}  // namespace quantd::QUANTD_CUDA_NS

#include "engine/plan/workspace.h"

#include <algorithm>
#include <string>

#include "engine/plan/sizes.h"

namespace quantd {
namespace {

using plan::RoundUp;
using plan::Size;

/// Calls body(weight, n, rows) for every packed weight, fused ones once with all their outputs.
template <typename Body>
void ForWeights(const DecoderSpec& spec, const WeightsPlan& plan, const PlanLimits& limits,
                const Body& body) {
  for (const auto& group : plan.groups) {
    for (const auto run : FusedRuns(group)) {
      int64_t n = 0;
      for (const ModulePlan& w : run) n += w.shape.n;
      body(run.front(), n, limits.max_num_batched_tokens);
    }
  }
  body(plan.head ? *plan.head : plan.embedding, spec.vocab_size, limits.max_logit_rows);
}

bool MultipliesIntegers(const ModulePlan& w) {
  using Kind = ActivationQuant::Kind;
  if (w.format.codec != Codec::kInt8) return false;
  if (w.activation.kind == Kind::kInt8Outlier) return true;
  return w.format.block.kind == BlockShape::Kind::kRow && w.format.zero == ZeroType::kNone &&
         ReplacesInput(w.activation.kind) && !IsFp8(w.activation.kind) && !w.activation.reference;
}

bool HasByteProducts(const std::string& isa) { return isa == "avx512vnni" || isa == "avx512bf16"; }

/// Of an element of x: pairs of bf16 where the processor multiplies them, else f32.
int64_t FloatTileBytes(const ModulePlan& w, DType compute, const std::string& isa) {
  const Codec codec = w.format.codec;
  const BlockShape& block = w.format.block;
  const bool pairs = isa == "avx512bf16" && compute == DType::kBF16 && codec != Codec::kF32 &&
                     codec != Codec::kF16 && codec != Codec::kUInt8 && codec != Codec::kInt8;
  const bool by_element = block.kind == BlockShape::Kind::kStrided ||
                          (block.kind == BlockShape::Kind::kFlat && w.shape.k % block.size != 0);
  return pairs && !by_element && !w.activation.reference ? 2 : 4;
}

/// One buffer for each purpose, as large as its largest use.
int64_t CpuScratch(const DecoderSpec& spec, const WeightsPlan& plan, DType compute,
                   const PlanLimits& limits, const PlanDevice& device) {
  constexpr int64_t kLine = 64, kKeysOfTile = 32, kColumnsOfPiece = 128;
  const int64_t threads = device.threads;
  int64_t tiles = 0, input = 0, sums = 0, codes = 0;
  ForWeights(spec, plan, limits, [&](const ModulePlan& w, int64_t, int64_t rows) {
    const int64_t k = w.shape.k, padded = RoundUp(k, 16);
    if (MultipliesIntegers(w)) {
      const int64_t mask =
          w.activation.kind == ActivationQuant::Kind::kInt8Outlier ? CeilDiv(k, 64) * 8 : 0;
      codes = std::max(codes, 2 * RoundUp(rows * 4, kLine) + RoundUp(rows, kLine) +
                                  RoundUp(rows * mask, kLine) +
                                  threads * (RoundUp(padded * 4, kLine) + RoundUp(padded, kLine)));
      tiles = std::max(tiles, rows * padded * (HasByteProducts(device.isa) ? 1 : 2));
      return;
    }
    tiles = std::max(tiles, rows * padded * FloatTileBytes(w, compute, device.isa));
    if (ReplacesInput(w.activation.kind) || w.format.reordered) {
      const bool both = ReplacesInput(w.activation.kind) && w.format.reordered;
      input = std::max(input, (rows + (both ? threads : 0)) * RoundUp(k * Size(compute), kLine));
    }
    if (w.format.zero != ZeroType::kNone) {
      const int64_t block = w.format.block.size > 0 ? std::min<int64_t>(w.format.block.size, k) : k;
      sums = std::max(sums, rows * CeilDiv(k, block) * CeilDiv(block, kColumnsOfPiece) * 4);
    }
  });
  const int64_t group = spec.num_heads / spec.num_kv_heads;
  const int64_t attention = (2 * group + kKeysOfTile) * RoundUp(spec.head_dim, 16) + kKeysOfTile +
                            group * (kKeysOfTile + 2);
  const int64_t candidates = 4 * spec.vocab_size;  // two (id, logprob) a token
  const int64_t per_thread =
      RoundUp(spec.hidden_size, 16) + RoundUp(attention, 16) + RoundUp(candidates, 16);
  return tiles + input + sums + codes + threads * per_thread * 4;
}

constexpr int64_t kAlignment = 256;
constexpr int64_t kLibraryWorkspace = int64_t{32} << 20;  // of cuBLASLt
constexpr int64_t kMaxSums = int64_t{64} << 20;           // of products of codes

int64_t RowsOfSums(int64_t rows, int64_t n, int64_t step) {
  return std::min(RoundUp(rows, step), std::max(step, kMaxSums / (n * 4) / step * step));
}

/// Of an int8 weight with a scale a row: others' activations are replaced by floats.
bool SumsIntegers(const ModulePlan& w) {
  using Kind = ActivationQuant::Kind;
  if (w.activation.kind == Kind::kInt8Outlier) return true;
  if (w.activation.reference || w.format.scale == ScaleType::kAbsmax) return false;
  return w.activation.kind == Kind::kInt8Token ||
         (w.activation.kind == Kind::kInt8Tensor && w.activation.zero_point == 0);
}

/// Scratch of one op, the input a Linear makes for itself, and counters of blocks.
struct OpScratch {
  int64_t data = 0;
  int64_t input = 0;
  int64_t counters = 0;
};

OpScratch CudaLinearScratch(const ModulePlan& w, int64_t n, int64_t rows, DType compute,
                            const PlanDevice& device) {
  using Kind = ActivationQuant::Kind;
  constexpr int64_t kMaxOutlierColumns = 256, kMaxFp8FloatRows = 16;
  const QuantFormat& f = w.format;
  const int64_t k = w.shape.k;
  const bool row_scales = f.block.kind == BlockShape::Kind::kRow && f.zero == ZeroType::kNone;
  OpScratch scratch;
  if (f.codec == Codec::kInt8 && row_scales && SumsIntegers(w)) {
    const int64_t padded = RoundUp(k, 64);
    const int64_t codes = RoundUp(rows * padded, kAlignment) + 2 * RoundUp(rows * 4, kAlignment) +
                          RoundUp(rows * kMaxOutlierColumns * 4, kAlignment) +
                          RoundUp(rows * padded / 8, kAlignment) + RoundUp(padded / 8, kAlignment);
    scratch.data = codes + kLibraryWorkspace + RowsOfSums(rows, n, 1) * n * 4;
    return scratch;
  }
  if (f.codec == Codec::kE4M3 && row_scales && device.multiplies_fp8 && k % 16 == 0 &&
      n % 16 == 0 &&
      (w.activation.kind == Kind::kFp8Token || w.activation.kind == Kind::kFp8Tensor) &&
      !w.activation.reference) {
    scratch.data = kLibraryWorkspace + RoundUp(RoundUp(rows, 16) * k, kAlignment) +
                   RoundUp(RoundUp(rows, 16) * 4, kAlignment) + RowsOfSums(rows, n, 16) * n * 4;
    // Few rows are multiplied as floats.
    if (compute != DType::kF32) {
      scratch.input =
          RoundUp(std::min(rows, kMaxFp8FloatRows) * RoundUp(k, 8) * Size(compute), kAlignment);
    }
    return scratch;
  }
  const bool replaces = ReplacesInput(w.activation.kind);
  const int64_t copies = (replaces ? 1 : 0) + (f.reordered ? 1 : 0);
  scratch.input = copies * RoundUp(rows * RoundUp(k, 8) * Size(compute), kAlignment);
  if (compute == DType::kF32) return scratch;  // LinearGeneric works in place
  scratch.data = kLibraryWorkspace;
  if (!IsPlain(f.codec)) {
    const int64_t row_bytes = k * Size(compute);
    const int64_t fitting = device.slab_bytes / row_bytes / 16 * 16;
    const int64_t slab_rows = std::min(std::max<int64_t>(fitting, 16), n);
    scratch.data += (slab_rows < n ? 2 : 1) * RoundUp(slab_rows * row_bytes, kAlignment);
  }
  return scratch;
}

/// Partial results of attention whose keys are split over blocks, and their counters.
OpScratch CudaAttentionScratch(const DecoderSpec& spec, const PlanLimits& limits, int64_t context) {
  constexpr int64_t kQueryRows = 16, kKeysOfChunk = 256, kSplitBlocks = 512, kPromptBlocks = 32;
  const int64_t group = spec.num_heads / spec.num_kv_heads;
  const int64_t heads = std::min(group, kQueryRows);
  const int64_t columns = spec.num_kv_heads * CeilDiv(group, heads);
  const int64_t prompt = kQueryRows / heads * (spec.head_dim == 256 ? 2 : 4);
  const int64_t tokens =
      std::min(limits.max_num_batched_tokens,
               std::max(kSplitBlocks / columns, kPromptBlocks / columns * prompt));
  const int64_t chunks = CeilDiv(RoundUp(context, limits.block_size), kKeysOfChunk);
  const int64_t partials = tokens * spec.num_heads * chunks * (spec.head_dim * 4 + 8);
  return {.data = chunks > 1 ? partials : 0, .counters = tokens * columns * 4};
}

int64_t CudaScratch(const DecoderSpec& spec, const WeightsPlan& plan, DType compute,
                    const PlanLimits& limits, const PlanDevice& device, int64_t context) {
  constexpr int64_t kResult = 16, kTopOfRow = 64 * 8, kParams = 52;  // bytes of a row of samples
  OpScratch largest;
  ForWeights(spec, plan, limits, [&](const ModulePlan& w, int64_t n, int64_t rows) {
    const OpScratch s = CudaLinearScratch(w, n, rows, compute, device);
    largest.data = std::max(largest.data, s.data);
    largest.input = std::max(largest.input, s.input);
  });
  const OpScratch attention = CudaAttentionScratch(spec, limits, context);
  largest.data = std::max(largest.data, attention.data);
  const int64_t logits = limits.max_logit_rows;
  const int64_t masks = logits * CeilDiv(spec.vocab_size, 32) * 4;  // allowed tokens, a bit each
  const int64_t samples = RoundUp(logits * kResult, kAlignment) + logits * kTopOfRow +
                          RoundUp(logits * kParams, kAlignment) + RoundUp(masks, kAlignment);
  return largest.data + largest.input + attention.counters + samples;
}

}  // namespace

int64_t WorkspaceBytes(const DecoderSpec& spec, const WeightsPlan& weights, DType compute,
                       const PlanLimits& limits, const PlanDevice& device) {
  constexpr int64_t kElement = 4;  // ids, positions, slots and logits
  const int64_t context =
      limits.max_model_len > 0 ? limits.max_model_len : spec.max_position_embeddings;
  const int64_t rows = limits.max_num_batched_tokens, logits = limits.max_logit_rows;
  const auto line = [](int64_t count) { return RoundUp(count, 16); };
  const int64_t arrays = 5 * line(rows) + line(logits) +
                         line(limits.max_num_seqs * CeilDiv(context, limits.block_size)) +
                         2 * line(logits);
  const int64_t step = kElement * (arrays + logits * spec.vocab_size);
  switch (device.backend) {
    case PlanBackend::kRef: return step;
    case PlanBackend::kCpu: return step + CpuScratch(spec, weights, compute, limits, device);
    case PlanBackend::kCuda:
      return step + CudaScratch(spec, weights, compute, limits, device, context);
  }
  return step;
}

}  // namespace quantd

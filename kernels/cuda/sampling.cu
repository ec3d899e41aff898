// Sampling by kernels/sampling.h on the device: edits, masks and bans, temperature, top_k, min_p,
// top_p, one draw in order of ids, log-probabilities. No sort, no round trip to the host. Edits
// change the row in place, for the draw alone: log-probabilities are the model's own.
//
// Idea: all three filters keep a best-first prefix, so what is kept is what is not worse than one
// element, the cut. Logits become integers that order as they do; radix select finds the cut by
// counts (top_k) or by weights (top_p). Weights are 64-bit fixed point: every sum is exact, so the
// result is the same bits in every run although histograms are made by atomics. The draw inverts
// the distribution function over the kept ids in ascending order, as the definition does.
//
// Mapping: a block a row, 64 to 1024 threads by the size of the vocabulary, 16 bytes a load. Bytes:
// the row (4 a token) once for greedy, two to ten times otherwise, all but the first time from L2.
// Bound: L2 to one multiprocessor, some 64 bytes a cycle; with top_p the instructions of an
// exponential a token.
#include <climits>
#include <cmath>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampling.cuh"

namespace quantd::QUANTD_CUDA_NS {
namespace {

constexpr int kMinThreads = 64, kMaxThreads = 1024;

static_assert(kMaxTopLogprobs == 64, "SampleShared::list");

/// What one pass over a row tells.
struct RowSummary {
  bool sound;         // no NaN, no +inf
  uint64_t best;      // entry of the best id, banned or not
  uint64_t allowed;   // entry of the best id that is not banned; 0: there is none
  uint32_t smallest;  // key of the smallest finite logit
};

__device__ RowSummary Summarize(const LogitRow& row, SampleShared& shared) {
  const float infinity = std::bit_cast<float>(0x7f800000u);
  uint32_t broken = 0, smallest = 0xffffffffu;
  uint32_t best_key = 0, allowed_key = 0;
  int best_id = 0, allowed_id = 0;
  ForEachLogit<4>(row, [&](int id, float raw) {
    broken |= raw < infinity ? 0u : 1u;
    const uint32_t key = KeyOf(Sane(raw));
    if (key >= kLowestFiniteKey && key < smallest) smallest = key;
    if (key > best_key) {  // ids of a thread ascend: the first of equals stays
      best_key = key;
      best_id = id;
    }
    if (key > allowed_key && row.Allows(id)) {
      allowed_key = key;
      allowed_id = id;
    }
  });
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  uint64_t best = WarpMax(EntryOf(best_key, best_id));
  uint64_t allowed = WarpMax(allowed_key == 0 ? uint64_t{0} : EntryOf(allowed_key, allowed_id));
  broken = __reduce_max_sync(kAllLanes, broken);
  smallest = __reduce_min_sync(kAllLanes, smallest);
  if (lane == 0) {
    shared.warp_best[0][warp] = best;
    shared.warp_best[1][warp] = allowed;
    shared.warp_word[0][warp] = broken;
    shared.warp_word[1][warp] = smallest;
  }
  __syncthreads();
  const bool valid = lane < warps;
  best = WarpMax(valid ? shared.warp_best[0][lane] : uint64_t{0});
  allowed = WarpMax(valid ? shared.warp_best[1][lane] : uint64_t{0});
  broken = __reduce_max_sync(kAllLanes, valid ? shared.warp_word[0][lane] : 0u);
  smallest = __reduce_min_sync(kAllLanes, valid ? shared.warp_word[1][lane] : 0xffffffffu);
  return {broken == 0, best, allowed, smallest};
}

/// The id at which `count` of the allowed ids with key `key` are reached, lowest ids first.
__device__ int32_t IdOfTie(const LogitRow& row, int tile, uint32_t key, uint64_t count,
                           SampleShared& shared) {
  return FirstAbove(
      row, tile,
      [&](int id, float logit) {
        return static_cast<uint64_t>(KeyOf(logit) == key && row.Allows(id) ? 1 : 0);
      },
      [&](uint64_t) { return count - 1; }, shared);
}

/// Draws from the allowed ids. `largest_key` is the best of them.
__device__ int32_t Draw(const LogitRow& row, int tile, const DeviceSampleParams& params, float one,
                        uint32_t largest_key, uint32_t smallest_key, SampleShared& shared) {
  const Weigher weigh{LogitOf(largest_key), params.temperature, one};
  const LinearBins bins = BinsOf(weigh.largest, LogitOf(smallest_key));

  uint32_t key = kLowestFiniteKey;  // worst kept key,
  int32_t last_id = INT_MAX;        // and the last id kept of those with this key
  if (params.min_p > 0.0f) {
    // At least min_p times as likely as the best. Through double, since the bound is compared
    // exactly.
    const float bound = static_cast<float>(log(static_cast<double>(fminf(params.min_p, 1.0f))));
    if (threadIdx.x < kWarp) {
      const uint32_t lowest = LowestKey(key, largest_key, [&](uint32_t candidate) {
        return (LogitOf(candidate) - weigh.largest) / params.temperature >= bound;
      });
      if (threadIdx.x == 0) shared.key_low = lowest;
    }
    __syncthreads();
    key = shared.key_low;
  }

  uint64_t kept = 0, ties = 0;  // of the elements with the cut's key
  if (params.top_k > 0 && params.top_k < row.vocab) {
    const uint64_t k = static_cast<uint64_t>(params.top_k);
    const Cut cut = Select(
        row, bins, [](float) { return uint64_t{1}; }, key, largest_key,
        [&](uint64_t total) { return k < total ? k : 0; }, shared);
    if (cut.exists) {
      key = cut.key;
      kept = cut.wanted;
      ties = cut.content;
    }
  }
  if (params.top_p < 1.0f) {
    const uint64_t excluded = (ties - kept) * weigh(LogitOf(key));  // ties that top_k cut off
    const Cut cut = Select(
        row, bins, weigh, key, largest_key,
        [&](uint64_t total) {
          const double wanted =
              ceil(static_cast<double>(params.top_p) * static_cast<double>(total - excluded));
          return wanted > 1.0 ? static_cast<uint64_t>(wanted) : uint64_t{1};
        },
        shared);
    key = cut.key;
    const uint64_t weight = weigh(LogitOf(key));
    kept = (cut.wanted + weight - 1) / weight;
    ties = cut.content / weight;
  }
  if (kept < ties) last_id = IdOfTie(row, tile, key, kept, shared);

  return FirstAbove(
      row, tile,
      [&](int id, float logit) {
        const uint32_t k = KeyOf(logit);
        const bool keeps = k <= largest_key && (k > key || (k == key && id <= last_id));
        return keeps && row.Allows(id) ? weigh(logit) : uint64_t{0};
      },
      [&](uint64_t total) {
        return static_cast<uint64_t>(static_cast<double>(params.uniform) *
                                     static_cast<double>(total));
      },
      shared);
}

/// The log-probability of `token` and of the `count` most likely ids, before temperature and bans;
/// returned, and written to top[0, count) by the block.
__device__ float Report(LogitRow row, int tile, float one, const RowSummary& summary, int32_t token,
                        int count, DeviceTokenLogprob* top, SampleShared& shared) {
  row.banned = nullptr;
  const uint32_t largest_key = KeyOfEntry(summary.best);
  const Weigher weigh{LogitOf(largest_key), 1.0f, one};
  uint64_t total = 0;
  ForEachLogit<2>(row, [&](int, float raw) { total += weigh(Sane(raw)); });
  total = BlockSum(total, shared.warp_sum);
  __syncthreads();
  const float log_total =
      static_cast<float>(log(static_cast<double>(total) / static_cast<double>(one)));
  const auto logprob = [&](float logit) {
    return KeyOf(logit) == kNeverKey ? logit : logit - weigh.largest - log_total;
  };

  const float smallest =
      summary.smallest <= largest_key ? LogitOf(summary.smallest) : weigh.largest;
  const Cut cut = Select(
      row, BinsOf(weigh.largest, smallest), [](float) { return uint64_t{1}; }, kNeverKey,
      largest_key, [&](uint64_t) { return static_cast<uint64_t>(count); }, shared);
  const int32_t last_id =
      cut.wanted < cut.content ? IdOfTie(row, tile, cut.key, cut.wanted, shared) : INT_MAX;
  if (threadIdx.x == 0) shared.list_size = 0;
  __syncthreads();
  ForEachLogit<2>(row, [&](int id, float raw) {
    const uint32_t key = KeyOf(Sane(raw));
    if (key < cut.key || (key == cut.key && id > last_id)) return;
    shared.list[atomicAdd(&shared.list_size, 1)] = EntryOf(key, id);
  });
  __syncthreads();
  // The list is in any order: an entry's place is the number of better ones.
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const uint64_t entry = shared.list[i];
    int better = 0;
    for (int j = 0; j < count; ++j) better += shared.list[j] > entry ? 1 : 0;
    top[better] = {IdOfEntry(entry), logprob(LogitOf(KeyOfEntry(entry)))};
  }
  return logprob(Sane(row.logits[token]));
}

/// EditedLogit of kernels/sampling.h, without contraction.
__device__ __forceinline__ float Edited(float x, const DeviceLogitEdit& edit, float repetition) {
  float y = __fadd_rn(x, edit.bias);
  if (edit.repeated != 0) y = y > 0.0f ? __fdiv_rn(y, repetition) : __fmul_rn(y, repetition);
  return __fsub_rn(y, edit.penalty);
}

__device__ void ApplyEdits(const LogitRow& row, const DeviceSampleParams& params,
                           DeviceLogitEdit* edits) {
  for (int i = static_cast<int>(threadIdx.x); i < params.num_edits;
       i += static_cast<int>(blockDim.x)) {
    DeviceLogitEdit& edit = edits[params.first_edit + i];
    edit.original = row.logits[edit.token_id];
    row.logits[edit.token_id] = Edited(edit.original, edit, params.repetition_penalty);
  }
  __syncthreads();
}

__device__ void UndoEdits(const LogitRow& row, const DeviceSampleParams& params,
                          const DeviceLogitEdit* edits) {
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < params.num_edits;
       i += static_cast<int>(blockDim.x)) {
    const DeviceLogitEdit& edit = edits[params.first_edit + i];
    row.logits[edit.token_id] = edit.original;
  }
  __syncthreads();
}

__global__ void __launch_bounds__(kMaxThreads)
    SampleKernel(float* logits, int64_t stride, int vocab, int tile, float one,
                 const DeviceSampleParams* all_params, DeviceSampleLists lists,
                 DeviceSampleResult* results, DeviceTokenLogprob* top, int32_t* sampled) {
  DYN_SMEM(SampleShared, shared);
  const int64_t r = blockIdx.x;
  const DeviceSampleParams& params = all_params[r];  // read again where needed: registers are few
  LogitRow row{logits + r * stride, vocab, false, nullptr};
  row.wide = reinterpret_cast<uintptr_t>(row.logits) % 16 == 0;

  if (params.num_banned > 0 || params.first_mask >= 0) {
    uint32_t* const bits = reinterpret_cast<uint32_t*>(shared + 1);
    for (int i = static_cast<int>(threadIdx.x); i < (vocab + 31) / 32;
         i += static_cast<int>(blockDim.x)) {
      bits[i] = params.first_mask >= 0 ? ~lists.masks[params.first_mask + i] : 0;
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < params.num_banned;
         i += static_cast<int>(blockDim.x)) {
      const int32_t id = lists.banned_ids[params.first_banned + i];
      if (id >= 0 && id < vocab) atomicOr(&bits[id / 32], 1u << (id % 32));
    }
    __syncthreads();
    row.banned = bits;
  }

  RowSummary summary = Summarize(row, *shared);
  const RowSummary own = summary;  // of the model's own logits
  DeviceSampleResult result;
  result.finite = summary.sound ? 1 : 0;
  if (params.num_edits > 0) {
    ApplyEdits(row, params, lists.edits);
    summary = Summarize(row, *shared);
  }
  const uint32_t largest_key = KeyOfEntry(summary.allowed);
  if (params.forced_id >= 0) {
    result.token_id = params.forced_id;
  } else if (largest_key >= kLowestFiniteKey) {
    result.token_id = params.temperature > 0.0f
                          ? Draw(row, tile, params, one, largest_key, summary.smallest, *shared)
                          : IdOfEntry(summary.allowed);
  }
  if (params.num_edits > 0) UndoEdits(row, params, lists.edits);
  if (params.num_logprobs > 0) {
    int count = params.num_logprobs < kMaxTopLogprobs ? params.num_logprobs : kMaxTopLogprobs;
    count = count < vocab ? count : vocab;
    result.logprob =
        Report(row, tile, one, own, result.token_id, count, top + r * kMaxTopLogprobs, *shared);
    result.num_top = count;
  }
  if (threadIdx.x == 0) {
    results[r] = result;
    sampled[r] = result.token_id;
  }
}

}  // namespace

void Sample(Matrix logits, const DeviceSampleParams* params, const DeviceSampleLists& lists,
            DeviceSampleResult* results, DeviceTokenLogprob* top, int32_t* sampled, Stream stream) {
  if (logits.rows == 0) return;
  const int vocab = logits.cols;
  int threads = kMinThreads;  // a power of two, so that it divides kBins; 8 tokens a thread or more
  while (threads < kMaxThreads && threads * 16 <= vocab) threads *= 2;
  const int tile = kTileUnit * CeilDiv(vocab, kTileUnit * kMaxTiles);
  int bits = 0;  // vocab <= 2^bits
  while (bits < 31 && 1 << bits < vocab) ++bits;
  const int fraction = 63 - bits < 48 ? 63 - bits : 48;
  const float one = std::ldexp(1.0f, fraction);
  const size_t bytes = sizeof(SampleShared) + static_cast<size_t>(CeilDiv(vocab, 32)) * 4;
  LAUNCH(SampleKernel, dim3(static_cast<unsigned>(logits.rows)),
         dim3(static_cast<unsigned>(threads)), bytes, stream, static_cast<float*>(logits.data),
         logits.stride, vocab, tile, one, params, lists, results, top, sampled);
}

}  // namespace quantd::QUANTD_CUDA_NS

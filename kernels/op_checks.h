// What every backend may assume of an op's arguments, checked once for all of them: each backend's
// op begins by calling the function of its name. They CHECK (a wrong shape is a bug of the caller),
// cost O(1), and read no array. The ...Ids functions read the index arrays, O(rows), and are for
// backends whose memory the host can read.
//
// The two functions that return a Status are about weights, which come from files.
// Thread-safe: no state.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "kernels/backend.h"

namespace quantd {

/// INVALID_ARGUMENT unless the format's parts belong together (QuantFormat::Check), for a k or a
/// segment's rows below 1.
absl::Status CheckCreatePacked(const QuantFormat& format, int64_t k,
                               const std::vector<RowSegment>& segments);
/// INVALID_ARGUMENT unless `matrix` has the weight's format and k, the segment's rows, and arrays
/// of the lengths its format says. Segments of a reordered weight must have the same columns: that
/// is the caller's duty.
absl::Status CheckPackRows(const PackedWeight& weight, size_t segment,
                           const QuantizedMatrix& matrix);

/// True for the dtypes of activations: f32, f16, bf16.
constexpr bool IsFloat(DType t) {
  return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16;
}

void CheckEmbed(const PackedWeight& table, std::span<const int32_t> ids, const TensorView& out);
void CheckRmsNorm(const TensorView& x, const float* weight, const TensorView& out);
void CheckAddRmsNorm(const TensorView& residual, const TensorView& x, const float* weight,
                     const TensorView& out);
void CheckLinear(const PackedWeight& w, const ActivationQuant& activation, const TensorView& x,
                 const TensorView& y);
void CheckNormHeads(const TensorView& q, const TensorView& k, const float* q_weight,
                    const float* k_weight, const AttentionSpec& spec);
void CheckRopeAndStoreKv(const TensorView& q, const TensorView& k, const TensorView& v,
                         const float* cos_sin, const AttentionSpec& spec,
                         const AttentionBatch& batch, const KvLayer& cache);
void CheckAttention(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
                    const KvLayer& cache, const TensorView& out);
void CheckGatedActivation(const TensorView& gate_up, const TensorView& out);
void CheckSoftCap(const TensorView& x, float cap);
void CheckGatherRows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out);
void CheckFeedBackTokens(std::span<const int32_t> ids, std::span<const int32_t> source);
void CheckSample(const TensorView& logits, std::span<const SampleParams> params,
                 std::span<const int32_t> sampled, std::span<const SampleResult> results);

/// Every id is in [0, limit). `what` names the array in the message.
void CheckIds(std::span<const int32_t> ids, int64_t limit, std::string_view what);
/// Every slot of the batch is in the cache.
void CheckSlotIds(const AttentionBatch& batch, const KvLayer& cache);
/// Every row's sequence is in the batch and its position within that sequence's block table.
void CheckAttentionIds(const AttentionBatch& batch, const KvLayer& cache);

}  // namespace quantd

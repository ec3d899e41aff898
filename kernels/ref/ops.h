// The ops of `ref` as free functions, one .cc per family; ref_backend.cc makes them a Backend.
// Contracts: kernels/backend.h. Arguments are checked by the caller (kernels/op_checks.h).
#pragma once

#include <span>

#include "kernels/backend.h"
#include "kernels/ref/packed_weight.h"

namespace quantd::ref {

void Linear(const RefPackedWeight& w, const ActivationQuant& activation, const TensorView& x,
            const float* bias, const TensorView& y);

void RmsNorm(const TensorView& x, const float* weight, float eps, const TensorView& out);
void AddRmsNorm(const TensorView& residual, const TensorView& x, const float* weight, float eps,
                const TensorView& out);

void NormHeads(const TensorView& q, const TensorView& k, const float* q_weight,
               const float* k_weight, float eps, const AttentionSpec& spec);

void RopeAndStoreKv(const TensorView& q, const TensorView& k, const TensorView& v,
                    const float* cos_sin, const AttentionSpec& spec, const AttentionBatch& batch,
                    const KvLayer& cache);

void Attention(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
               const KvLayer& cache, const TensorView& out);

void Embed(const RefPackedWeight& table, std::span<const int32_t> ids, float scale,
           const TensorView& out);
void GatedActivation(const TensorView& gate_up, Activation activation, const TensorView& out);
void SoftCap(const TensorView& x, float cap);
void GatherRows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out);
void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                    std::span<const int32_t> sampled);

}  // namespace quantd::ref

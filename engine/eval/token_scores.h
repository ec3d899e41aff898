// ScoreTokens: what a model's logits say of the tokens that came, and how far they are from those
// of another model. Pure functions; the work is shared out over threads.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace quantd {

/// Tokens of either model that are compared by TokenScore::top5.
inline constexpr int kTopTokens = 5;

/// One prediction. In nats.
struct TokenScore {
  float nll = 0.0f;            // -log p(token that came)
  float reference_nll = 0.0f;  // the reference's
  float kl = 0.0f;             // KL(reference || model), over the whole vocabulary; 0 or more
  bool top1 = false;           // the likeliest token is the same
  int8_t top5 = 0;             // of the reference's five likeliest, how many are among the model's
};

/// Scores of rows of logits f32 [targets.size(), vocab]: row i predicts targets[i]. `reference` has
/// the other model's logits of the same shape, or is empty: then only `nll` is set. Sums are in
/// double. A tie is won by the smaller id.
std::vector<TokenScore> ScoreTokens(std::span<const float> logits, std::span<const float> reference,
                                    std::span<const int32_t> targets, int64_t vocab, int threads);

/// The likeliest token of a row; the smaller id of two that are even.
int32_t Likeliest(std::span<const float> row);

}  // namespace quantd

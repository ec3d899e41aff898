// LogitControl: see the header for the definitions.
#include "engine/logit_control.h"

#include <algorithm>

namespace quantd {

bool LeavesSome(std::span<const int32_t> allowed, std::span<const int32_t> banned) {
  if (allowed.empty()) return true;
  // Both lists may be as long as the vocabulary.
  std::vector<int32_t> sorted(banned.begin(), banned.end());
  std::sort(sorted.begin(), sorted.end());
  return std::any_of(allowed.begin(), allowed.end(), [&](int32_t id) {
    return !std::binary_search(sorted.begin(), sorted.end(), id);
  });
}

LogitControl::LogitControl(const SamplingParams& sampling, std::span<const int32_t> prompt,
                           std::vector<std::vector<int32_t>> bad_words,
                           std::vector<int32_t> stop_ids, int64_t vocab_size)
    : repetition_penalty_(sampling.repetition_penalty),
      presence_penalty_(sampling.presence_penalty),
      frequency_penalty_(sampling.frequency_penalty),
      min_tokens_(sampling.min_tokens),
      banned_before_min_(std::move(stop_ids)),
      allowed_ids_(sampling.allowed_token_ids) {
  for (const auto& [token, bias] : sampling.logit_bias) EditOf(token).bias = bias;
  if (repetition_penalty_ != 1.0f) {
    for (const int32_t token : prompt) EditOf(token).repeated = 1;
  }
  std::sort(allowed_ids_.begin(), allowed_ids_.end());
  allowed_ids_.erase(std::unique(allowed_ids_.begin(), allowed_ids_.end()), allowed_ids_.end());
  if (!allowed_ids_.empty()) {
    allowed_mask_.assign(static_cast<size_t>(vocab_size + 31) / 32, 0);
    for (const int32_t id : allowed_ids_) {
      allowed_mask_[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    }
  }
  for (std::vector<int32_t>& word : bad_words) {
    if (word.size() > 1) {
      bad_words_.push_back(std::move(word));
    } else {
      banned_always_.push_back(word[0]);
    }
  }
  // Something has to be drawn: where bad words would leave nothing of few allowed tokens, they
  // yield.
  if (!LeavesSome(allowed_ids_, banned_always_)) banned_always_.clear();
  const std::vector<int32_t> stops = banned_before_min_;
  banned_before_min_.insert(banned_before_min_.end(), banned_always_.begin(), banned_always_.end());
  if (!LeavesSome(allowed_ids_, banned_before_min_)) banned_before_min_ = stops;
  needs_tokens_ = repetition_penalty_ != 1.0f || presence_penalty_ != 0.0f ||
                  frequency_penalty_ != 0.0f || !bad_words_.empty();
}

LogitEdit& LogitControl::EditOf(int32_t token) {
  const auto [it, inserted] = place_.try_emplace(token, edits_.size());
  if (inserted) {
    edits_.push_back({.token_id = token});
    counts_.push_back(0);
  }
  return edits_[it->second];
}

void LogitControl::Push(int32_t token) {
  const bool repeats = repetition_penalty_ != 1.0f;
  if (!repeats && presence_penalty_ == 0.0f && frequency_penalty_ == 0.0f) return;
  LogitEdit& edit = EditOf(token);
  edit.repeated = repeats ? 1 : 0;
  const int32_t count = ++counts_[place_.at(token)];
  edit.penalty = presence_penalty_ + frequency_penalty_ * static_cast<float>(count);
}

void LogitControl::Apply(int32_t index, std::span<const int32_t> generated, SampleParams* params) {
  const std::vector<int32_t>& banned = index < min_tokens_ ? banned_before_min_ : banned_always_;
  params->banned_ids = banned;
  params->allowed_mask = allowed_mask_;
  params->edits = edits_;
  params->repetition_penalty = repetition_penalty_;
  if (bad_words_.empty()) return;
  banned_ = banned;
  for (const std::vector<int32_t>& word : bad_words_) {
    const size_t prefix = word.size() - 1;
    if (generated.size() < prefix) continue;
    const auto tail = generated.last(prefix);
    if (std::equal(tail.begin(), tail.end(), word.begin())) banned_.push_back(word.back());
  }
  if (LeavesSome(allowed_ids_, banned_)) params->banned_ids = banned_;
}

}  // namespace quantd

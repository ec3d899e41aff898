// LogitControl: see the header for the definitions.
#include "engine/logit_control.h"

#include <algorithm>
#include <utility>

namespace quantd {

size_t NumLeft(std::span<const int32_t> allowed, std::span<const int32_t> banned) {
  if (allowed.empty()) return SIZE_MAX;
  // Both lists may be as long as the vocabulary.
  std::vector<int32_t> sorted(banned.begin(), banned.end());
  std::sort(sorted.begin(), sorted.end());
  return static_cast<size_t>(std::count_if(allowed.begin(), allowed.end(), [&](int32_t id) {
    return !std::binary_search(sorted.begin(), sorted.end(), id);
  }));
}

LogitControl::LogitControl(const SamplingParams& sampling, std::span<const int32_t> prompt,
                           std::vector<std::vector<int32_t>> bad_words,
                           std::vector<int32_t> stop_ids, int64_t vocab_size)
    : repetition_penalty_(sampling.repetition_penalty),
      presence_penalty_(sampling.presence_penalty),
      frequency_penalty_(sampling.frequency_penalty),
      min_tokens_(sampling.min_tokens) {
  for (const auto& [token, bias] : sampling.logit_bias) EditOf(token).bias = bias;
  if (repetition_penalty_ != 1.0f) {
    for (const int32_t token : prompt) EditOf(token).repeated = 1;
  }
  Lists lists;
  std::vector<int32_t>& allowed = lists.allowed_ids;
  allowed = sampling.allowed_token_ids;
  std::sort(allowed.begin(), allowed.end());
  allowed.erase(std::unique(allowed.begin(), allowed.end()), allowed.end());
  if (!allowed.empty()) {
    lists.allowed_mask.assign(static_cast<size_t>(vocab_size + 31) / 32, 0);
    for (const int32_t id : allowed) {
      lists.allowed_mask[static_cast<size_t>(id) / 32] |= 1u << (id % 32);
    }
  }
  std::vector<int32_t> single;
  for (std::vector<int32_t>& word : bad_words) {
    if (word.size() > 1) {
      lists.bad_words.push_back(std::move(word));
    } else {
      single.push_back(word[0]);
    }
  }
  // Something has to be drawn: where bad words would leave nothing of few allowed tokens, they
  // yield.
  const auto ban = [&allowed](std::vector<int32_t> ids, std::vector<int32_t> otherwise) {
    if (const size_t left = NumLeft(allowed, ids); left > 0) return Banned{std::move(ids), left};
    const size_t left = NumLeft(allowed, otherwise);
    return Banned{std::move(otherwise), left};
  };
  lists.always = ban(single, {});
  std::vector<int32_t> both = stop_ids;
  both.insert(both.end(), lists.always.ids.begin(), lists.always.ids.end());
  lists.before_min = ban(std::move(both), std::move(stop_ids));
  needs_tokens_ = repetition_penalty_ != 1.0f || presence_penalty_ != 0.0f ||
                  frequency_penalty_ != 0.0f || !lists.bad_words.empty();
  lists_ = std::make_shared<Lists>(std::move(lists));
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
  const Lists& lists = *lists_;
  const Banned& banned = index < min_tokens_ ? lists.before_min : lists.always;
  params->banned_ids = banned.ids;
  params->allowed_mask = lists.allowed_mask;
  params->edits = edits_;
  params->repetition_penalty = repetition_penalty_;
  if (lists.bad_words.empty()) return;
  banned_ = banned.ids;
  for (const std::vector<int32_t>& word : lists.bad_words) {
    const size_t prefix = word.size() - 1;
    if (generated.size() < prefix) continue;
    const auto tail = generated.last(prefix);
    if (std::equal(tail.begin(), tail.end(), word.begin())) banned_.push_back(word.back());
  }
  // Counted only where so few are left that these could be all of them.
  const size_t added = banned_.size() - banned.ids.size();
  if (banned.left > added || NumLeft(lists.allowed_ids, banned_) > 0) params->banned_ids = banned_;
}

}  // namespace quantd

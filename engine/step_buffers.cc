// StepBuffers: from a StepPlan to the arrays Model::Forward reads. See step_buffers.h.
#include "engine/step_buffers.h"

#include <algorithm>

#include "kernels/status.h"

namespace quantd {

absl::StatusOr<std::unique_ptr<StepBuffers>> StepBuffers::Create(Backend& backend,
                                                                 const StepLimits& limits) {
  std::unique_ptr<StepBuffers> self(new StepBuffers(backend, limits));
  const auto rows = static_cast<size_t>(limits.max_rows);
  const auto seqs = static_cast<size_t>(limits.max_seqs);
  const size_t table = seqs * static_cast<size_t>(limits.max_blocks);

  const std::pair<Array*, size_t> arrays[] = {
      {&self->token_ids_, rows},    {&self->positions_, rows}, {&self->slots_of_rows_, rows},
      {&self->seq_of_row_, rows},   {&self->feedback_, rows},  {&self->logit_rows_, seqs},
      {&self->block_tables_, table}};
  // Every array begins on a 64-byte line, as kernels may load whole vectors.
  const auto padded = [](size_t count) { return (count + 15) / 16 * 16; };
  size_t total = kSlots * padded(seqs);
  for (const auto& [array, count] : arrays) total += padded(count);
  ASSIGN_OR_RETURN(self->ids_buffer_,
                   backend.Allocate(total * sizeof(int32_t), MemoryComponent::kWorkspace));
  auto* next = self->ids_buffer_.as<int32_t>();
  for (const auto& [array, count] : arrays) {
    array->device = {next, count};
    array->host.resize(count);
    next += padded(count);
  }
  for (Slot& slot : self->slots_) {
    slot.sampled = {next, seqs};
    next += padded(seqs);
    slot.params.resize(seqs);
    slot.results.resize(seqs);
    slot.top.resize(seqs * static_cast<size_t>(limits.max_logprobs));
  }
  ASSIGN_OR_RETURN(self->logits_buffer_,
                   backend.Allocate(seqs * static_cast<size_t>(limits.vocab_size) * sizeof(float),
                                    MemoryComponent::kWorkspace));
  self->logits_ =
      TensorView(DType::kF32, self->logits_buffer_.data(), limits.max_seqs, limits.vocab_size);
  return self;
}

std::span<const int32_t> StepBuffers::Upload(const Array& array, size_t count) {
  backend_.Upload(array.host.data(), count * sizeof(int32_t), array.device.data());
  return array.device.first(count);
}

void StepBuffers::Fill(const StepPlan& plan, int slot) {
  size_t max_blocks = 0;
  for (const StepEntry& entry : plan.entries) {
    max_blocks = std::max(max_blocks, entry.sequence->blocks.blocks.size());
  }
  bool feedback = false;
  size_t row = 0;
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const StepEntry& entry = plan.entries[i];
    const Sequence& s = *entry.sequence;
    const std::vector<int32_t>& blocks = s.blocks.blocks;
    for (int32_t j = 0; j < entry.count; ++j, ++row) {
      const auto position = static_cast<size_t>(entry.first + j);
      const bool pending = position >= s.tokens.size();
      token_ids_.host[row] = pending ? 0 : s.tokens[position];
      feedback_.host[row] = pending ? entry.feedback_row : -1;
      feedback |= pending;
      positions_.host[row] = entry.first + j;
      const int32_t block = blocks[position / static_cast<size_t>(limits_.block_size)];
      slots_of_rows_.host[row] =
          block * limits_.block_size + (entry.first + j) % limits_.block_size;
      seq_of_row_.host[row] = static_cast<int32_t>(i);
    }
    if (entry.logit_row >= 0) {
      logit_rows_.host[static_cast<size_t>(entry.logit_row)] = static_cast<int32_t>(row) - 1;
    }
    const auto table = block_tables_.host.begin() + static_cast<std::ptrdiff_t>(i * max_blocks);
    std::copy(blocks.begin(), blocks.end(), table);
    std::fill(table + static_cast<std::ptrdiff_t>(blocks.size()),
              table + static_cast<std::ptrdiff_t>(max_blocks), 0);
  }

  num_logits_ = plan.num_logits;
  batch_.token_ids = Upload(token_ids_, row);
  batch_.logit_rows = Upload(logit_rows_, static_cast<size_t>(plan.num_logits));
  batch_.attention.positions = Upload(positions_, row);
  batch_.attention.slots = Upload(slots_of_rows_, row);
  batch_.attention.seq_of_row = Upload(seq_of_row_, row);
  batch_.attention.block_tables = Upload(block_tables_, plan.entries.size() * max_blocks);
  batch_.attention.num_seqs = static_cast<int32_t>(plan.entries.size());
  batch_.attention.max_blocks = static_cast<int32_t>(max_blocks);
  if (feedback) {
    backend_.FeedBackTokens(token_ids_.device.first(row), Upload(feedback_, row),
                            slots_[static_cast<size_t>(slot ^ 1)].sampled);
  }
}

void StepBuffers::Sample(int slot) {
  if (num_logits_ == 0) return;
  Slot& s = slots_[static_cast<size_t>(slot)];
  const auto count = static_cast<size_t>(num_logits_);
  for (size_t i = 0; i < count; ++i) {
    const auto top = static_cast<size_t>(s.params[i].num_logprobs);
    QUANTD_CHECK(top <= static_cast<size_t>(limits_.max_logprobs));
    s.results[i] = SampleResult{};
    s.results[i].top = std::span(s.top).subspan(i * static_cast<size_t>(limits_.max_logprobs), top);
  }
  backend_.Sample(logits(), std::span<const SampleParams>(s.params).first(count),
                  s.sampled.first(count), std::span(s.results).first(count));
}

}  // namespace quantd

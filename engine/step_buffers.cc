// StepBuffers: from a StepPlan to the arrays Model::Forward reads. See step_buffers.h.
#include "engine/step_buffers.h"

#include <algorithm>

#include "kernels/status.h"

namespace quantd {

namespace {

// Every array begins on a 64-byte line, as kernels may load whole vectors.
size_t Padded(size_t count) { return (count + 15) / 16 * 16; }

}  // namespace

StepBuffers::Layout StepBuffers::LayoutOf(const StepShape& shape) {
  const auto rows = static_cast<size_t>(shape.rows);
  Layout layout{};
  size_t next = 0;
  const auto place = [&next](size_t count) {
    const size_t at = next;
    next += Padded(count);
    return at;
  };
  layout.token_ids = place(rows);
  layout.positions = place(rows);
  layout.slots = place(rows);
  layout.seq_of_row = place(rows);
  layout.feedback = place(rows);
  layout.logit_rows = place(static_cast<size_t>(shape.logits));
  layout.block_tables =
      place(static_cast<size_t>(shape.seqs) * static_cast<size_t>(shape.max_blocks));
  layout.end = next;
  return layout;
}

absl::StatusOr<std::unique_ptr<StepBuffers>> StepBuffers::Create(Backend& backend,
                                                                 const StepLimits& limits) {
  std::unique_ptr<StepBuffers> self(new StepBuffers(backend, limits));
  const auto logits = static_cast<size_t>(limits.max_logits);
  const size_t step = LayoutOf({.rows = limits.max_rows,
                                .seqs = limits.max_seqs,
                                .logits = limits.max_logits,
                                .max_blocks = limits.max_blocks})
                          .end;
  self->arrays_.resize(step);
  ASSIGN_OR_RETURN(self->ids_buffer_,
                   backend.Allocate((step + kSlots * Padded(logits)) * sizeof(int32_t),
                                    MemoryComponent::kWorkspace));
  auto* next = self->ids_buffer_.as<int32_t>() + step;
  for (Slot& slot : self->slots_) {
    slot.sampled = {next, logits};
    next += Padded(logits);
    slot.params.resize(logits);
    slot.results.resize(logits);
    slot.top.resize(logits * static_cast<size_t>(limits.max_logprobs));
  }
  ASSIGN_OR_RETURN(self->logits_buffer_,
                   backend.Allocate(logits * static_cast<size_t>(limits.vocab_size) * sizeof(float),
                                    MemoryComponent::kWorkspace));
  self->logits_ =
      TensorView(DType::kF32, self->logits_buffer_.data(), limits.max_logits, limits.vocab_size);
  return self;
}

StepShape StepBuffers::ShapeFor(const StepPlan& plan) const {
  StepShape shape;
  shape.rows = plan.num_tokens;
  shape.seqs = static_cast<int32_t>(plan.entries.size());
  shape.logits = plan.num_logits;
  shape.decode_only = plan.num_tokens == shape.seqs && plan.num_logits == shape.seqs;
  for (const StepEntry& entry : plan.entries) {
    shape.max_blocks =
        std::max(shape.max_blocks, static_cast<int32_t>(entry.sequence->blocks.blocks.size()));
  }
  StepShape padded = backend_.PaddedShape(shape);
  padded.max_blocks = std::min(padded.max_blocks, limits_.max_blocks);
  if (padded.rows > shape.rows) {
    // Every row of padding is a sequence and has logits.
    const int32_t extra = std::min(
        padded.rows - shape.rows,
        std::min(limits_.max_rows - shape.rows,
                 std::min(limits_.max_seqs - shape.seqs, limits_.max_logits - shape.logits)));
    padded.rows = shape.rows + extra;
    padded.seqs = shape.seqs + extra;
    padded.logits = shape.logits + extra;
  }
  return padded;
}

void StepBuffers::Fill(const StepPlan& plan, int slot) {
  shape_ = ShapeFor(plan);
  const Layout layout = LayoutOf(shape_);
  int32_t* const arrays = arrays_.data();
  const auto max_blocks = static_cast<size_t>(shape_.max_blocks);
  bool feedback = false;
  size_t row = 0;
  for (size_t i = 0; i < plan.entries.size(); ++i) {
    const StepEntry& entry = plan.entries[i];
    const Sequence& s = *entry.sequence;
    const std::vector<int32_t>& blocks = s.blocks.blocks;
    for (int32_t j = 0; j < entry.count; ++j, ++row) {
      const auto position = static_cast<size_t>(entry.first + j);
      const bool draft = j >= entry.count - entry.drafts;
      const bool pending = !draft && position >= s.tokens.size();
      arrays[layout.token_ids + row] = pending ? 0
                                       : draft ? s.drafts[position - s.tokens.size()]
                                               : s.tokens[position];
      arrays[layout.feedback + row] = pending ? entry.feedback_row : -1;
      feedback |= pending;
      arrays[layout.positions + row] = entry.first + j;
      const int32_t block = blocks[position / static_cast<size_t>(limits_.block_size)];
      arrays[layout.slots + row] =
          block * limits_.block_size + (entry.first + j) % limits_.block_size;
      arrays[layout.seq_of_row + row] = static_cast<int32_t>(i);
    }
    for (int32_t k = 0; k < entry.num_logits; ++k) {
      arrays[layout.logit_rows + static_cast<size_t>(entry.logit_row + k)] =
          static_cast<int32_t>(row) - entry.num_logits + k;
    }
    int32_t* const table = arrays + layout.block_tables + i * max_blocks;
    std::copy(blocks.begin(), blocks.end(), table);
    std::fill(table + blocks.size(), table + max_blocks, 0);
  }
  num_sampled_ = plan.num_logits;
  FillPadding(layout, row, plan.entries.size());

  auto* const device = ids_buffer_.as<int32_t>();
  backend_.Upload(arrays, layout.end * sizeof(int32_t), device);
  const auto rows = static_cast<size_t>(shape_.rows);
  batch_.token_ids = {device + layout.token_ids, rows};
  batch_.logit_rows = {device + layout.logit_rows, static_cast<size_t>(shape_.logits)};
  batch_.attention.positions = {device + layout.positions, rows};
  batch_.attention.slots = {device + layout.slots, rows};
  batch_.attention.seq_of_row = {device + layout.seq_of_row, rows};
  batch_.attention.block_tables = {device + layout.block_tables,
                                   static_cast<size_t>(shape_.seqs) * max_blocks};
  batch_.attention.num_seqs = shape_.seqs;
  batch_.attention.max_blocks = shape_.max_blocks;
  if (feedback) {
    backend_.FeedBackTokens({device + layout.token_ids, rows}, {device + layout.feedback, rows},
                            slots_[static_cast<size_t>(slot ^ 1)].sampled);
  }
}

void StepBuffers::FillPadding(const Layout& layout, size_t rows, size_t seqs) {
  int32_t* const arrays = arrays_.data();
  const auto max_blocks = static_cast<size_t>(shape_.max_blocks);
  auto logit = static_cast<size_t>(num_sampled_);
  for (size_t row = rows, seq = seqs; row < static_cast<size_t>(shape_.rows);
       ++row, ++seq, ++logit) {
    arrays[layout.token_ids + row] = 0;
    arrays[layout.feedback + row] = -1;
    arrays[layout.positions + row] = 0;
    arrays[layout.slots + row] = 0;
    arrays[layout.seq_of_row + row] = static_cast<int32_t>(seq);
    arrays[layout.logit_rows + logit] = static_cast<int32_t>(row);
    std::fill_n(arrays + layout.block_tables + seq * max_blocks, max_blocks, 0);
  }
}

void StepBuffers::Sample(int slot) {
  if (num_sampled_ == 0) return;
  Slot& s = slots_[static_cast<size_t>(slot)];
  const auto count = static_cast<size_t>(num_sampled_);
  for (size_t i = 0; i < count; ++i) {
    const auto top = static_cast<size_t>(s.params[i].num_logprobs);
    QUANTD_CHECK(top <= static_cast<size_t>(limits_.max_logprobs));
    s.results[i] = SampleResult{};
    s.results[i].top = std::span(s.top).subspan(i * static_cast<size_t>(limits_.max_logprobs), top);
  }
  backend_.Sample(logits_.Rows(0, num_sampled_),
                  std::span<const SampleParams>(s.params).first(count), s.sampled.first(count),
                  std::span(s.results).first(count));
}

}  // namespace quantd

#include "engine/sequence_runner.h"

#include <algorithm>
#include <numeric>

#include "kernels/ceil_div.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int64_t kArrays = 5;  // of a step

std::vector<int32_t> Iota(int64_t first, int64_t count) {
  std::vector<int32_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), static_cast<int32_t>(first));
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SequenceRunner>> SequenceRunner::Create(Backend& backend,
                                                                       Model& model, DType kv_dtype,
                                                                       int64_t max_tokens) {
  QUANTD_CHECK(max_tokens > 0, "max_tokens is {}", max_tokens);
  std::unique_ptr<SequenceRunner> runner(new SequenceRunner(backend, model));
  const int32_t blocks = static_cast<int32_t>(CeilDiv(max_tokens, int64_t{kBlockSize}));
  runner->max_tokens_ = max_tokens;
  runner->max_rows_ = std::min({max_tokens, model.max_rows(), model.max_logit_rows()});
  ASSIGN_OR_RETURN(runner->kv_,
                   KvCache::Create(backend, model.spec(), kv_dtype, blocks + 1, kBlockSize));
  const auto workspace = [&](int64_t elements) {
    return backend.Allocate(static_cast<size_t>(elements) * sizeof(int32_t),
                            MemoryComponent::kWorkspace);
  };
  ASSIGN_OR_RETURN(runner->steps_, workspace(kArrays * runner->max_rows_));
  ASSIGN_OR_RETURN(runner->table_, workspace(blocks));
  ASSIGN_OR_RETURN(runner->logits_, workspace(runner->max_rows_ * model.spec().vocab_size));
  const std::vector<int32_t> table = Iota(1, blocks);  // block 0 is reserved
  backend.Upload(table.data(), table.size() * sizeof(int32_t), runner->table_.data());
  return runner;
}

absl::StatusOr<std::span<const float>> SequenceRunner::Append(std::span<const int32_t> ids,
                                                              const LinearObserver* observer) {
  const int64_t count = static_cast<int64_t>(ids.size());
  const int64_t vocab = model_.spec().vocab_size;
  QUANTD_CHECK(count > 0 && count <= max_rows_ && length_ + count <= max_tokens_,
               "{} tokens after {}, at most {} a step and {} in all", count, length_, max_rows_,
               max_tokens_);
  int32_t* const arrays = steps_.as<int32_t>();
  int64_t next = 0;
  const auto set = [&](std::span<const int32_t> values) {
    int32_t* const to = arrays + max_rows_ * next++;
    backend_.Upload(values.data(), values.size_bytes(), to);
    return std::span<const int32_t>(to, values.size());
  };
  Batch batch;
  batch.token_ids = set(ids);
  batch.logit_rows = set(Iota(0, count));
  batch.attention.positions = set(Iota(length_, count));
  batch.attention.slots = set(Iota(kBlockSize + length_, count));
  batch.attention.seq_of_row = set(std::vector<int32_t>(ids.size(), 0));
  batch.attention.num_seqs = 1;
  batch.attention.max_blocks = kv_->num_blocks() - 1;
  batch.attention.block_tables = {table_.as<int32_t>(), static_cast<size_t>(kv_->num_blocks() - 1)};
  model_.Forward(batch, *kv_, TensorView(DType::kF32, logits_.data(), count, vocab), observer);
  RETURN_IF_ERROR(backend_.Synchronize());
  length_ += count;
  host_logits_.resize(static_cast<size_t>(count * vocab));
  backend_.Download(logits_.data(), host_logits_.size() * sizeof(float), host_logits_.data());
  return std::span<const float>(host_logits_);
}

}  // namespace quantd

// Engine::Create (options, KV cache size) and what callers' threads run: Submit, Cancel, Drain,
// Stats.
#include "engine/engine.h"

#include <algorithm>
#include <atomic>

#include "engine/engine_impl.h"
#include "engine/kv_cache.h"
#include "kernels/fault_list.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr int64_t kDefaultKvBytes = int64_t{1} << 30;  // most that is taken without being told to

// Fills in what was left at 0 and refuses what contradicts itself or the model.
absl::StatusOr<EngineOptions> Resolve(EngineOptions o, const DecoderSpec& spec,
                                      const Model& model) {
  if (o.max_num_seqs > model.max_logit_rows()) {
    return InvalidArgument("max_num_seqs is {}, allowed: 1 to the model's rows of logits ({})",
                           o.max_num_seqs, model.max_logit_rows());
  }
  RETURN_IF_ERROR(CheckEngineOptions(o, spec));
  if (o.max_num_batched_tokens > model.max_rows()) {
    return InvalidArgument(
        "max_num_batched_tokens is {}, allowed: max_num_seqs ({}) to the model's rows ({})",
        o.max_num_batched_tokens, o.max_num_seqs, model.max_rows());
  }
  if (o.max_model_len == 0) o.max_model_len = static_cast<int32_t>(spec.max_position_embeddings);
  return o;
}

// Rows of logits of a step: one a sequence, and some more for drafts and logprobs of prompts.
int32_t MaxLogits(const EngineOptions& o, const Model& model) {
  return static_cast<int32_t>(
      std::min<int64_t>(model.max_logit_rows(), o.max_num_seqs + kExtraLogitRows));
}

// Whatever makes the KV of equal tokens differ.
uint64_t CacheSalt(const LoadedModel& model) {
  uint64_t h = 0xCBF29CE484222325ull;  // FNV-1a
  const auto mix = [&h](std::string_view text) {
    for (const char c : text) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001B3ull;
  };
  mix(ToString(model.kv_dtype));
  mix(model.report.profile_hash);
  return h;
}

// Nothing else can end the text.
bool EndsOnlyAtMaxTokens(const SamplingParams& p) {
  return p.ignore_eos && p.stop.empty() && p.stop_token_ids.empty();
}

// A number no other engine of the process has.
uint64_t NextOwner() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

}  // namespace

absl::Status CheckEngineOptions(const EngineOptions& o, const DecoderSpec& spec) {
  FaultList faults;
  if (o.max_num_seqs < 1) {
    faults.Add("max_num_seqs is {}, allowed: 1 or more", o.max_num_seqs);
  }
  if (o.max_num_batched_tokens < o.max_num_seqs) {
    faults.Add("max_num_batched_tokens is {}, allowed: max_num_seqs ({}) or more",
               o.max_num_batched_tokens, o.max_num_seqs);
  }
  if (o.max_queued_requests < 1) {
    faults.Add("max_queued_requests is {}, allowed: 1 or more", o.max_queued_requests);
  }
  if (o.max_queued_tokens < 0) {
    faults.Add("max_queued_tokens is {}, allowed: 0 (no limit) or more", o.max_queued_tokens);
  }
  if (o.block_size < 1 || o.block_size > 1024) {
    faults.Add("block_size is {}, allowed: 1 to 1024", o.block_size);
  }
  if (o.kv_cache_bytes < 0 || o.num_kv_blocks < 0) {
    faults.Add("kv_cache_bytes is {} and num_kv_blocks {}, allowed: 0 or more", o.kv_cache_bytes,
               o.num_kv_blocks);
  }
  if (o.prompt_lookup_num_tokens < 0 || o.prompt_lookup_num_tokens > kMaxDraftTokens) {
    faults.Add("prompt_lookup_num_tokens is {}, allowed: 0 (off) to {}", o.prompt_lookup_num_tokens,
               kMaxDraftTokens);
  }
  if (o.pipeline_depth < -1 || o.pipeline_depth > 1) {
    faults.Add("pipeline_depth is {}, allowed: -1 (the backend's), 0, 1", o.pipeline_depth);
  }
  if (o.max_model_len < 0 || o.max_model_len > spec.max_position_embeddings) {
    faults.Add("max_model_len is {}, allowed: 0 (the model's) to {}", o.max_model_len,
               spec.max_position_embeddings);
  }
  return faults.ToStatus(absl::StatusCode::kInvalidArgument);
}

// As many as the options ask for, but by default never more than max_num_seqs whole contexts take.
absl::StatusOr<int32_t> KvBlocksFor(const EngineOptions& o, int64_t max_model_len,
                                    int64_t bytes_per_token) {
  if (o.num_kv_blocks > 0) return o.num_kv_blocks;
  const int64_t bytes_per_block = bytes_per_token * o.block_size;
  const int64_t context = (max_model_len + o.block_size - 1) / o.block_size;
  // The default is beside the reserved block: many models have a context of just so many tokens.
  const int64_t bytes = o.kv_cache_bytes > 0 ? o.kv_cache_bytes : kDefaultKvBytes + bytes_per_block;
  const int64_t blocks = bytes / bytes_per_block - 1;  // the reserved block is paid for, too
  if (blocks < 1) {
    return InvalidArgument("kv_cache_bytes is {}, allowed: at least {} (two blocks of {} tokens)",
                           bytes, 2 * bytes_per_block, o.block_size);
  }
  int64_t usable = std::min<int64_t>(blocks, INT32_MAX / o.block_size - 1);
  if (o.kv_cache_bytes == 0) usable = std::min(usable, context * o.max_num_seqs);
  return static_cast<int32_t>(usable);
}

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(Backend& backend, LoadedModel model,
                                                       const Tokenizer* tokenizer,
                                                       const EngineOptions& options,
                                                       EngineObserver* observer) {
  QUANTD_CHECK(model.model != nullptr);
  ASSIGN_OR_RETURN(EngineOptions resolved, Resolve(options, model.spec, *model.model));
  ASSIGN_OR_RETURN(resolved.num_kv_blocks,
                   KvBlocksFor(resolved, resolved.max_model_len,
                               KvCache::BytesPerToken(model.spec, model.kv_dtype)));
  if (resolved.pipeline_depth < 0) resolved.pipeline_depth = backend.preferred_pipeline_depth();
  ASSIGN_OR_RETURN(auto kv, KvCache::Create(backend, model.spec, model.kv_dtype,
                                            resolved.num_kv_blocks + 1, resolved.block_size));
  const StepLimits limits = {
      .max_rows = resolved.max_num_batched_tokens,
      .max_seqs = resolved.max_num_seqs,
      .max_logits = MaxLogits(resolved, *model.model),
      .max_blocks = (resolved.max_model_len + resolved.block_size - 1) / resolved.block_size,
      .block_size = resolved.block_size,
      .vocab_size = model.spec.vocab_size,
  };
  ASSIGN_OR_RETURN(auto buffers, StepBuffers::Create(backend, limits));
  return std::unique_ptr<Engine>(std::make_unique<EngineImpl>(
      backend, std::move(model), tokenizer, resolved, observer, std::move(kv), std::move(buffers)));
}

EngineImpl::EngineImpl(Backend& backend, LoadedModel model, const Tokenizer* tokenizer,
                       const EngineOptions& options, EngineObserver* observer,
                       std::unique_ptr<KvCache> kv, std::unique_ptr<StepBuffers> buffers)
    : backend_(backend),
      loaded_(std::move(model)),
      tokenizer_(tokenizer),
      options_(options),
      observer_(observer),
      eos_ids_(loaded_.spec.eos_token_ids),
      admission_({.max_queued_requests = options.max_queued_requests,
                  .max_queued_tokens = options.max_queued_tokens,
                  .max_num_seqs = options.max_num_seqs}),
      seeds_(std::random_device{}()),
      kv_(std::move(kv)),
      buffers_(std::move(buffers)),
      pool_(kv_->num_blocks(), kv_->block_size(), CacheSalt(loaded_)),
      scheduler_({.max_num_seqs = options.max_num_seqs,
                  .max_num_batched_tokens = options.max_num_batched_tokens,
                  .max_logits = MaxLogits(options, *loaded_.model)},
                 &pool_),
      owner_(NextOwner()),
      replayed_before_(backend.step_counts().replayed) {
  eos_ids_.insert(eos_ids_.end(), loaded_.defaults.eos_token_ids.begin(),
                  loaded_.defaults.eos_token_ids.end());
  std::sort(eos_ids_.begin(), eos_ids_.end());
  eos_ids_.erase(std::unique(eos_ids_.begin(), eos_ids_.end()), eos_ids_.end());
  sampled_.reserve(static_cast<size_t>(options_.max_num_seqs + kExtraLogitRows));
  stats_.kv_blocks_total = pool_.num_usable();
  stats_.kv_blocks_free = pool_.num_free();
  thread_ = std::thread([this] { ThreadMain(); });
}

EngineImpl::~EngineImpl() {
  {
    std::lock_guard lock(mutex_);
    shutdown_ = true;
  }
  wake_.notify_all();
  thread_.join();
  backend_.ForgetSteps(owner_);
}

absl::Status EngineImpl::CheckRequest(const Request& request) const {
  const SamplingParams& sampling = request.sampling;
  RETURN_IF_ERROR(ValidateSampling(sampling, loaded_.spec.vocab_size));
  if (request.prompt_ids.empty()) return InvalidArgument("the prompt has no tokens");
  for (size_t i = 0; i < request.prompt_ids.size(); ++i) {
    const int32_t id = request.prompt_ids[i];
    if (id < 0 || id >= loaded_.spec.vocab_size) {
      return InvalidArgument("prompt_ids[{}] is {}, allowed: 0 to {}", i, id,
                             loaded_.spec.vocab_size - 1);
    }
  }
  if (!sampling.stop.empty() && tokenizer_ == nullptr) {
    return InvalidArgument("stop has {} strings, but there is no tokenizer to make text with",
                           sampling.stop.size());
  }
  if (!sampling.bad_words.empty() && tokenizer_ == nullptr) {
    return InvalidArgument("bad_words has {} strings, but there is no tokenizer to read them",
                           sampling.bad_words.size());
  }
  if (sampling.n > options_.max_queued_requests) {
    return InvalidArgument("n is {}, allowed: at most the {} requests that may wait", sampling.n,
                           options_.max_queued_requests);
  }
  if (NumLeft(sampling.allowed_token_ids, BannedBeforeMin(sampling)) == 0) {
    return InvalidArgument(
        "allowed_token_ids has only tokens that end the text, which min_tokens {} forbids",
        sampling.min_tokens);
  }
  const auto prompt = static_cast<int64_t>(request.prompt_ids.size());
  const int64_t total = prompt + sampling.max_tokens;
  if (total > options_.max_model_len) {
    return InvalidArgument(
        "the prompt's {} tokens and max_tokens {} make {}, allowed: the context of {}", prompt,
        sampling.max_tokens, total, options_.max_model_len);
  }
  // The last token drawn is never computed, so it needs no place.
  const int32_t needed = pool_.BlocksFor(total - 1);
  if (needed > pool_.num_usable()) {
    return InvalidArgument(
        "the prompt's {} tokens and max_tokens {} need {} KV blocks of {} tokens, allowed: {}",
        prompt, sampling.max_tokens, needed, options_.block_size, pool_.num_usable());
  }
  return absl::OkStatus();
}

std::vector<int32_t> EngineImpl::BannedBeforeMin(const SamplingParams& sampling) const {
  if (sampling.min_tokens == 0) return {};
  std::vector<int32_t> banned = sampling.stop_token_ids;
  if (!sampling.ignore_eos) banned.insert(banned.end(), eos_ids_.begin(), eos_ids_.end());
  return banned;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> EngineImpl::BadWords(
    const SamplingParams& sampling) const {
  std::vector<std::vector<int32_t>> words;
  for (size_t i = 0; i < sampling.bad_words.size(); ++i) {
    const std::string& word = sampling.bad_words[i];
    // In the middle of a text a word begins with the space before it.
    for (const std::string& text : {word, " " + word}) {
      if (text.size() > word.size() && word.front() == ' ') continue;
      absl::StatusOr<std::vector<int32_t>> ids = tokenizer_->Encode(text, false);
      if (!ids.ok()) return Annotate(ids.status(), fmt::format("bad_words[{}]", i));
      if (!ids->empty()) words.push_back(*std::move(ids));
    }
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  return words;
}

bool EngineImpl::SharesPrompt(const Request& request) const {
  return options_.enable_prefix_caching && !request.bypass_prefix_cache &&
         request.sampling.prompt_logprobs < 0;
}

std::unique_ptr<LiveRequest> EngineImpl::Prepare(const Request& request, int32_t index,
                                                 const LogitControl& control,
                                                 std::shared_ptr<RequestSink> sink) const {
  auto live = std::make_unique<LiveRequest>();
  live->index = index;
  live->id = request.id;
  live->sampling = request.sampling;
  live->priority = request.priority;
  live->deadline = request.deadline;
  live->use_prefix_cache = options_.enable_prefix_caching && !request.bypass_prefix_cache;
  live->prompt_size = static_cast<int32_t>(request.prompt_ids.size());
  live->max_size = live->prompt_size + live->sampling.max_tokens;
  live->tokens = request.prompt_ids;
  live->tokens.reserve(static_cast<size_t>(live->max_size));
  live->blocks.blocks.reserve(static_cast<size_t>(pool_.BlocksFor(live->max_size)));
  live->stop_ids = live->sampling.stop_token_ids;
  live->control = control;
  live->wants_prompt_logits = index == 0 && live->sampling.prompt_logprobs >= 0;
  if (live->wants_prompt_logits) live->use_prefix_cache = false;  // logits are not cached
  // Verifying several draws in one step needs what each may draw, so not the tokens before.
  const int32_t lookup = live->sampling.prompt_lookup_num_tokens < 0
                             ? options_.prompt_lookup_num_tokens
                             : live->sampling.prompt_lookup_num_tokens;
  live->max_drafts = live->control.needs_tokens() ? 0 : lookup;
  live->needs_tokens = live->control.needs_tokens() || live->max_drafts > 0;
  // Outputs wait for the first to have computed the prompt, and take it from the prefix cache.
  live->held = index > 0 && SharesPrompt(request);
  if (tokenizer_ != nullptr) {
    live->seeks_stop_strings = live->sampling.min_tokens == 0;
    // After a prompt with text the first token keeps its space: prompt and text make one.
    const bool continues = std::any_of(live->tokens.begin(), live->tokens.end(),
                                       [&](int32_t id) { return !tokenizer_->IsSpecial(id); });
    live->decoder.emplace(
        *tokenizer_, live->seeks_stop_strings ? live->sampling.stop : std::vector<std::string>{},
        live->sampling.skip_special_tokens, continues, live->sampling.include_stop_str_in_output);
  }
  live->sink = std::move(sink);
  return live;
}

absl::StatusOr<RequestHandle> EngineImpl::Submit(Request request,
                                                 std::shared_ptr<RequestSink> sink) {
  QUANTD_CHECK(sink != nullptr);
  RETURN_IF_ERROR(CheckRequest(request));
  const Clock::time_point now = Clock::now();
  if (request.deadline.has_value() && *request.deadline <= now) {
    return DeadlineExceeded("the deadline had passed when the request arrived");
  }
  ASSIGN_OR_RETURN(auto bad_words, BadWords(request.sampling));
  const int32_t n = request.sampling.n;
  const SamplingParams& sampling = request.sampling;
  Admission::Newcomer newcomer = {
      .tenant = request.tenant,
      .weight = request.tenant_weight,
      .priority = request.priority,
      .outputs = n,
      .prompt_tokens = static_cast<int64_t>(request.prompt_ids.size()),
      .max_tokens = sampling.max_tokens,
      .least_tokens =
          EndsOnlyAtMaxTokens(sampling) ? sampling.max_tokens : std::max(sampling.min_tokens, 1),
      .shares_prompt = SharesPrompt(request),
  };
  if (request.deadline.has_value()) newcomer.seconds_left = Seconds(*request.deadline - now);
  const auto open = [this]() -> absl::Status {
    if (!dead_.ok()) return Unavailable("the device failed: {}", Message(dead_));
    if (draining_ || shutdown_) return Unavailable("the engine takes no more requests");
    return absl::OkStatus();
  };
  // Its places are taken before anything is made of it: what is made for many at once that find the
  // queue full afterwards would have no bound.
  std::vector<Admission::Place> places;
  {
    std::lock_guard lock(mutex_);
    RETURN_IF_ERROR(open());
    RETURN_IF_ERROR(admission_.Check(newcomer, load_));
    for (int32_t i = 0; i < n; ++i) places.push_back(admission_.Enter(newcomer, i));
  }
  const LogitControl control(sampling, request.prompt_ids, std::move(bad_words),
                             BannedBeforeMin(sampling), loaded_.spec.vocab_size);
  request.sampling.allowed_token_ids.clear();  // as long as the vocabulary, and `control` has it
  std::vector<std::unique_ptr<LiveRequest>> outputs;
  for (int32_t i = 0; i < n; ++i) outputs.push_back(Prepare(request, i, control, sink));
  RequestHandle handle = 0;
  {
    std::lock_guard lock(mutex_);
    if (const absl::Status closed = open(); !closed.ok()) {
      for (const Admission::Place& place : places) admission_.Leave(place, /*to_run=*/false);
      return closed;
    }
    handle = last_handle_ + 1;
    const uint64_t seed = request.sampling.seed.has_value() ? *request.sampling.seed : seeds_();
    for (std::unique_ptr<LiveRequest>& live : outputs) {
      live->submitted = now;
      live->arrival = live->handle = ++last_handle_;
      live->place = std::move(places[static_cast<size_t>(live->index)]);
      live->tag = live->place.tag;
      live->seed = seed;
      inbox_.submissions.push_back(std::move(live));
    }
    unfinished_ += n;
  }
  wake_.notify_one();
  return handle;
}

void EngineImpl::Cancel(RequestHandle handle) {
  {
    std::lock_guard lock(mutex_);
    inbox_.cancels.push_back(handle);
  }
  wake_.notify_one();
}

int64_t EngineImpl::Drain(std::chrono::milliseconds timeout) {
  // A year is forever, and does not overflow when added to now.
  timeout = std::min<std::chrono::milliseconds>(timeout, std::chrono::hours(24 * 365));
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto none_left = [this] { return unfinished_ == 0; };
  if (idle_.wait_until(lock, Clock::now() + timeout, none_left)) return 0;
  inbox_.cancel_all = true;
  wake_.notify_one();
  idle_.wait(lock, none_left);
  return std::exchange(drain_cancelled_, 0);
}

absl::Status EngineImpl::Health() const {
  std::lock_guard lock(mutex_);
  return dead_;
}

EngineStats EngineImpl::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting += static_cast<int64_t>(inbox_.submissions.size());
  stats.waiting_tokens = admission_.waiting_tokens();
  stats.expected_wait_seconds = admission_.ExpectedWait({}, load_);
  stats.refused_requests = admission_.refused(Admission::Refusal::kRequests);
  stats.refused_tokens = admission_.refused(Admission::Refusal::kTokens);
  stats.refused_share = admission_.refused(Admission::Refusal::kShare);
  stats.refused_deadline = admission_.refused(Admission::Refusal::kDeadline);
  return stats;
}

}  // namespace quantd

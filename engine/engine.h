// Engine: the facade. Requests in, tokens out; usable without any server.
//
//   ASSIGN_OR_RETURN(auto engine, Engine::Create(*backend, std::move(loaded), tokenizer, options));
//   ASSIGN_OR_RETURN(RequestHandle handle, engine->Submit(std::move(request), sink));
//
// One engine thread owns scheduler, KV cache, model and sampler; Submit and Cancel talk to it
// through a bounded inbox and may be called from any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/load.h"
#include "engine/request.h"
#include "engine/text/tokenizer.h"

namespace quantd {

struct EngineOptions {
  int32_t max_num_seqs = 16;             // running at once
  int32_t max_num_batched_tokens = 512;  // rows of one step; <= the model's max_rows
  int32_t max_queued_requests = 256;     // waiting; beyond it Submit is RESOURCE_EXHAUSTED
  int64_t max_queued_tokens = 0;         // of prompts that wait; 0: no limit
  int32_t block_size = 16;               // tokens in a KV block
  int64_t kv_cache_bytes = 0;            // 0: room for max_num_seqs whole contexts, at most 1 GiB
  int32_t num_kv_blocks = 0;             // instead of kv_cache_bytes, when positive
  int32_t max_model_len = 0;             // context; 0: the model's max_position_embeddings
  bool enable_prefix_caching = true;
  int32_t prompt_lookup_num_tokens = 0;  // drafts of a step, of requests that do not say; 0: off
  int32_t pipeline_depth =
      -1;  // 0: a step is completed before the next is planned; 1: one ahead; -1: the backend's
};

/// Rows of logits that a model should be loaded for beyond max_num_seqs: drafts that are verified
/// and logprobs of prompts take them, as many as there are, and do without.
inline constexpr int32_t kExtraLogitRows = 16;

/// What Engine::Create refuses of `options` for a model of `spec`, whatever that was loaded for:
/// INVALID_ARGUMENT with all of it. To be told before a model is loaded.
absl::Status CheckEngineOptions(const EngineOptions& options, const DecoderSpec& spec);

/// Blocks of the KV cache that `options` ask for, without the reserved one, of a model with
/// contexts of `max_model_len` and `bytes_per_token`. INVALID_ARGUMENT when kv_cache_bytes are too
/// few.
absl::StatusOr<int32_t> KvBlocksFor(const EngineOptions& options, int64_t max_model_len,
                                    int64_t bytes_per_token);

/// Hears what happens, for metrics. Called from the engine thread; must not block.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  struct Finished {
    FinishReason reason;
    Usage usage;
    int32_t max_tokens = 0;
    double queue_seconds = 0;    // submitted to first scheduled
    double prefill_seconds = 0;  // first scheduled to first token
    double decode_seconds = 0;   // first token to last
    double total_seconds = 0;
  };
  virtual void OnFirstToken(double /*seconds_since_submit*/) {}
  virtual void OnInterTokenLatency(double /*seconds*/) {}
  virtual void OnStep(int32_t /*tokens*/) {}
  virtual void OnFinished(const Finished&) {}
};

/// A snapshot, consistent as of the last finished step.
struct EngineStats {
  int64_t waiting = 0;
  int64_t running = 0;
  int64_t kv_blocks_total = 0;       // usable ones: without the reserved block
  int64_t kv_blocks_free = 0;        // free or only held by the prefix cache
  int64_t prefix_cache_queries = 0;  // tokens looked up
  int64_t prefix_cache_hits = 0;     // tokens found
  int64_t preemptions = 0;
  int64_t prompt_tokens = 0;
  int64_t generation_tokens = 0;
  int64_t steps = 0;
  int64_t draft_tokens = 0;           // guessed by prompt lookup and verified
  int64_t accepted_draft_tokens = 0;  // of these, right
  int64_t replayed_steps = 0;         // of these, launched as graphs captured before
  int64_t waiting_tokens = 0;         // of prompts that wait
  double expected_wait_seconds = 0;   // of a request that came now, until it is begun with
  // Refused when they arrived: too many requests or tokens waiting, too many of one tenant, a
  // deadline that cannot be met.
  int64_t refused_requests = 0;
  int64_t refused_tokens = 0;
  int64_t refused_share = 0;
  int64_t refused_deadline = 0;
};

using RequestHandle = uint64_t;

class Engine {
 public:
  /// `backend` and `tokenizer` must outlive the engine. `tokenizer` may be null: updates then carry
  /// no text, and stop strings are refused. INVALID_ARGUMENT for options that contradict each
  /// other, RESOURCE_EXHAUSTED when the KV cache does not fit.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(Backend& backend, LoadedModel model,
                                                        const Tokenizer* tokenizer,
                                                        const EngineOptions& options,
                                                        EngineObserver* observer = nullptr);
  virtual ~Engine() = default;  // cancels what is live, joins the engine thread

  /// Checks the request and queues it. On error nothing was taken and the sink is never called.
  /// INVALID_ARGUMENT (a field, the prompt's length against the context), RESOURCE_EXHAUSTED (queue
  /// full, or a deadline that cannot be met; RetryAfter says when to try again: admission.h),
  /// DEADLINE_EXCEEDED (past, or too soon even for an empty queue), UNAVAILABLE (draining or dead).
  virtual absl::StatusOr<RequestHandle> Submit(Request request,
                                               std::shared_ptr<RequestSink> sink) = 0;
  /// Ends a request within one step with kCancelled; unknown or finished handles are ignored.
  virtual void Cancel(RequestHandle handle) = 0;
  /// Takes no more requests and waits until the live ones are finished or `timeout` passed; those
  /// left are cancelled, as UNAVAILABLE. Returns how many were cancelled.
  virtual int64_t Drain(std::chrono::milliseconds timeout) = 0;
  virtual EngineStats Stats() const = 0;
  /// OK, or why the device is gone: then every request is UNAVAILABLE, and only a new process
  /// helps.
  virtual absl::Status Health() const = 0;

  virtual const DecoderSpec& spec() const = 0;
  virtual const QuantizationReport& report() const = 0;
  virtual const GenerationDefaults& defaults() const = 0;
  virtual int32_t max_model_len() const = 0;
};

}  // namespace quantd

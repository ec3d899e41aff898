// EngineImpl: the one implementation of Engine.
//
// Callers' threads run Submit, Cancel, Drain and Stats (engine.cc); they share with the engine
// thread only what stands under `mutex_`. Everything below "engine thread" belongs to that thread
// alone: its loop is in engine_thread.cc, what a finished step means for requests in
// engine_output.cc.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "engine/admission.h"
#include "engine/block_pool.h"
#include "engine/engine.h"
#include "engine/logit_control.h"
#include "engine/scheduler.h"
#include "engine/sequence.h"
#include "engine/step_buffers.h"
#include "engine/text/stream_decoder.h"

namespace quantd {

/// An output of a request the engine has taken: the scheduler's Sequence and what turns its tokens
/// into updates.
struct LiveRequest final : Sequence {
  RequestHandle handle = 0;  // the request's plus `index`
  int32_t index = 0;         // which of the request's outputs
  std::string id;
  SamplingParams sampling;
  uint64_t seed = 0;
  std::vector<int32_t> stop_ids;  // end the request: stop_token_ids
  LogitControl control;
  int32_t max_drafts = 0;                // of a step
  int32_t prompt_logprobs_known = 0;     // tokens of the prompt whose logprobs were reported
  Admission::Place place;                // in line, and what it was charged there
  std::shared_ptr<RequestSink> sink;     // dropped with the last update
  std::optional<StreamDecoder> decoder;  // none without a tokenizer
  bool seeks_stop_strings = false;       // `decoder` looks for them
  int32_t completion_tokens = 0;
  int32_t computed_prompt_tokens = 0;  // counted once, however often it is preempted
  Clock::time_point submitted;
  std::optional<Clock::time_point> first_scheduled;
  std::optional<Clock::time_point> first_token;
  Clock::time_point last_token;

  Usage usage() const {
    return {.prompt_tokens = prompt_size,
            .cached_tokens = cached_tokens,
            .completion_tokens = completion_tokens,
            .computed_prompt_tokens = computed_prompt_tokens};
  }
};

class EngineImpl final : public Engine {
 public:
  EngineImpl(Backend& backend, LoadedModel model, const Tokenizer* tokenizer,
             const EngineOptions& options, EngineObserver* observer, std::unique_ptr<KvCache> kv,
             std::unique_ptr<StepBuffers> buffers);
  ~EngineImpl() override;

  absl::StatusOr<RequestHandle> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(RequestHandle handle) override;
  int64_t Drain(std::chrono::milliseconds timeout) override;
  EngineStats Stats() const override;
  absl::Status Health() const override;

  const DecoderSpec& spec() const override { return loaded_.spec; }
  const QuantizationReport& report() const override { return loaded_.report; }
  const GenerationDefaults& defaults() const override { return loaded_.defaults; }
  int32_t max_model_len() const override { return options_.max_model_len; }

 private:
  // What callers leave for the engine thread.
  struct Inbox {
    std::vector<std::unique_ptr<LiveRequest>> submissions;
    std::vector<RequestHandle> cancels;
    bool cancel_all = false;

    bool empty() const { return submissions.empty() && cancels.empty() && !cancel_all; }
  };
  struct Delivery {
    std::shared_ptr<RequestSink> sink;
    RequestUpdate update;
  };

  // ---- callers' threads (engine.cc)
  // ----------------------------------------------------------------
  absl::Status CheckRequest(const Request& request) const;
  // Output `index` of `request`.
  std::unique_ptr<LiveRequest> Prepare(const Request& request, int32_t index,
                                       const LogitControl& control,
                                       std::shared_ptr<RequestSink> sink) const;
  // Its outputs wait for the first to have computed the prompt.
  bool SharesPrompt(const Request& request) const;
  // Tokens that end the text, as long as min_tokens forbids that.
  std::vector<int32_t> BannedBeforeMin(const SamplingParams& sampling) const;
  // Token sequences of the request's bad words.
  absl::StatusOr<std::vector<std::vector<int32_t>>> BadWords(const SamplingParams& sampling) const;

  // ---- engine thread: the loop (engine_thread.cc)
  // --------------------------------------------------
  void ThreadMain();
  // Moves the inbox to taken_, waiting for something to do unless `busy`. False: shut down.
  bool TakeInbox(bool busy);
  std::optional<Clock::time_point> NextWake() const;
  void HandleInbox();
  void ExpireDeadlines();
  void PollStalled();
  // Plans, launches and completes what can be. False when nobody can advance.
  bool Step();
  // Gives sequences that are about to decode their drafts.
  void ProposeDrafts();
  // How row `row` of the entry's logits is drawn from.
  void FillParams(const StepEntry& entry, int32_t row, SampleParams* params);
  void Launch(int slot);
  // Ends the requests of a step that could not be computed; the others go on.
  void FailStep(int slot, const absl::Status& status);
  void FinishAll(FinishReason reason, const absl::Status& status);
  void Die(const absl::Status& status);

  // ---- engine thread: output (engine_output.cc)
  // ----------------------------------------------------
  void Complete(int slot);
  // Reports logprobs of the prompt that came with `entry`.
  void EmitPromptLogprobs(LiveRequest& request, const StepEntry& entry,
                          std::span<const SampleResult> results);
  void EmitToken(LiveRequest& request, const SampleResult& result, Clock::time_point now);
  // The prompt of `leader` is in the prefix cache, or will not be: its other outputs may begin.
  void ReleaseOutputs(const LiveRequest& leader);
  // Appends the text of `token` to `update`; true when it completed a stop string.
  bool Decode(LiveRequest& request, int32_t token, RequestUpdate* update);
  bool IsEos(int32_t token) const;
  void NoteLatency(LiveRequest& request, Clock::time_point now);
  // Ends `request`: completes `update`, gives its blocks back. It stays allocated until Flush.
  void Finish(LiveRequest& request, FinishReason reason, absl::Status status, RequestUpdate update,
              bool keep_cached = true);
  // Publishes the statistics, then delivers the updates made since the last call.
  void Flush();

  Backend& backend_;
  LoadedModel loaded_;
  const Tokenizer* const tokenizer_;  // may be null
  const EngineOptions options_;       // with every 0 resolved
  EngineObserver* const observer_;    // may be null
  std::vector<int32_t> eos_ids_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;  // the engine thread has something to do
  std::condition_variable idle_;  // no unfinished request is left
  Inbox inbox_;
  bool draining_ = false;
  bool shutdown_ = false;
  absl::Status dead_;  // why the device is gone; OK while it works
  RequestHandle last_handle_ = 0;
  Admission admission_;  // its line: taken and not yet in any step
  Admission::Load load_;
  int64_t unfinished_ = 0;       // taken and not yet answered with a last update
  int64_t drain_cancelled_ = 0;  // by cancel_all
  EngineStats stats_;
  std::mt19937_64 seeds_;  // of requests without a seed

  // ---- engine thread
  // -------------------------------------------------------------------------------
  std::unique_ptr<KvCache> kv_;
  std::unique_ptr<StepBuffers> buffers_;
  BlockPool pool_;
  Scheduler scheduler_;
  const uint64_t owner_;           // names this engine's steps at the backend
  const int64_t replayed_before_;  // steps the backend had replayed when this engine was made
  StepPlan plans_[StepBuffers::kSlots];
  uint64_t tickets_[StepBuffers::kSlots] = {};  // of the launched steps
  int next_slot_ = 0;
  int slot_in_flight_ = -1;  // launched and not completed; -1: none
  bool failed_ = false;      // the engine thread's own copy of !dead_.ok()
  absl::flat_hash_map<RequestHandle, std::unique_ptr<LiveRequest>> live_;
  std::vector<std::unique_ptr<LiveRequest>> finished_;  // until no step in flight names them
  std::vector<Delivery> outbox_;
  std::vector<int32_t> sampled_;
  std::vector<int32_t> accepted_;  // drafts of each entry of the step being completed
  std::vector<Sequence*> expired_;
  Inbox taken_;
  EngineStats counts_;  // the running totals among stats_
  // Since the last Flush.
  std::vector<std::pair<Admission::Place, bool>> left_line_;  // to run, or not
  std::vector<std::pair<Admission::Place, Admission::Served>> served_;
  int64_t ended_ = 0;
  bool left_waiting_ = false;  // the last step could not take everybody

  std::thread thread_;  // last: starts when all else is there
};

}  // namespace quantd

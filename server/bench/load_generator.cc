#include "server/bench/load_generator.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <optional>
#include <queue>
#include <thread>
#include <utility>

#include "quantd/v1/inference.grpc.pb.h"
#include "server/bench/arrivals.h"

namespace quantd::bench {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kProgressSeconds = 0.2;
constexpr auto kQueueSamplePeriod = std::chrono::milliseconds(250);
constexpr double kQueueSampleTimeoutSeconds = 1.0;
constexpr double kFirstBackoffSeconds = 0.1;
constexpr double kLongestBackoffSeconds = 5.0;

SteadyClock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<SteadyClock::duration>(std::chrono::duration<double>(seconds));
}

// What the calls of a run have in common. A call's record is its own until Done has it.
class RunState {
 public:
  struct Ended {
    size_t index;
    double pushback;  // seconds after which the server wants it again; < 0: it did not say
  };

  double Now() const { return std::chrono::duration<double>(SteadyClock::now() - start_).count(); }
  SteadyClock::time_point At(double seconds) const { return start_ + Seconds(seconds); }

  void Done(Ended ended) {
    // Notified under the lock: whoever waits for the last call destroys this right after it.
    std::lock_guard lock(mutex_);
    ended_.push_back(ended);
    changed_.notify_one();
  }

  /// What has ended; waits for something to until `seconds`.
  std::vector<Ended> WaitUntil(double seconds) {
    std::unique_lock lock(mutex_);
    changed_.wait_until(lock, At(seconds), [this] { return !ended_.empty(); });
    return std::exchange(ended_, {});
  }

 private:
  const SteadyClock::time_point start_ = SteadyClock::now();
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Ended> ended_;
};

// One attempt of a request. Deletes itself when gRPC is done with it. gRPC's threads call it one at
// a time; the mutex says so to ThreadSanitizer, which does not see into gRPC.
class StreamCall : public grpc::ClientReadReactor<v1::GenerateStreamResponse> {
 public:
  StreamCall(RunState* run, size_t index, RequestRecord* record, v1::GenerateRequest request)
      : run_(run), index_(index), record_(record), request_(std::move(request)) {}

  void Start(v1::Inference::Stub& stub, double deadline) {
    if (deadline < kNever) {
      const double left = std::max(deadline - run_->Now(), 0.0);
      context_.set_deadline(std::chrono::system_clock::now() +
                            std::chrono::duration_cast<std::chrono::system_clock::duration>(
                                std::chrono::duration<double>(left)));
    }
    { const std::lock_guard lock(mutex_); }  // not held below: gRPC may react at once
    stub.async()->GenerateStream(&context_, &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    TakeResponse();
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    const auto [run, ended] = Finish(status);
    delete this;
    run->Done(ended);
  }

 private:
  ~StreamCall() override = default;

  void TakeResponse() {
    const std::lock_guard lock(mutex_);
    const double now = run_->Now();
    if (response_.token_ids_size() > 0) {
      RequestRecord& r = *record_;
      if (r.first < 0) {
        r.first = now;
      } else {
        r.gaps.push_back(now - r.last);
      }
      r.last = now;
      ++r.responses;
      r.output_tokens += response_.token_ids_size();
    }
    if (response_.has_usage()) {
      record_->prompt_tokens = response_.usage().prompt_tokens();
      record_->cached_tokens = response_.usage().cached_tokens();
    }
  }

  std::pair<RunState*, RunState::Ended> Finish(const grpc::Status& status) {
    const std::lock_guard lock(mutex_);
    record_->end = run_->Now();
    record_->code = static_cast<absl::StatusCode>(status.error_code());
    record_->message = status.error_message();
    return {run_, {index_, Pushback()}};
  }

  double Pushback() const {
    const auto& metadata = context_.GetServerTrailingMetadata();
    const auto it = metadata.find("grpc-retry-pushback-ms");
    if (it == metadata.end()) return -1.0;
    int64_t milliseconds = -1;
    std::from_chars(it->second.data(), it->second.data() + it->second.size(), milliseconds);
    return milliseconds < 0 ? -1.0 : static_cast<double>(milliseconds) * 1e-3;
  }

  std::mutex mutex_;
  RunState* const run_;
  const size_t index_;
  RequestRecord* const record_;
  const v1::GenerateRequest request_;
  grpc::ClientContext context_;
  v1::GenerateStreamResponse response_;
};

// Asks for the server's queue until it is destroyed.
class QueueSampler {
 public:
  QueueSampler(const ChannelOptions& channel, QueueSamples* samples)
      : thread_([this, channel, samples] {
          Client client(channel);
          std::unique_lock lock(mutex_);
          while (!stop_) {
            lock.unlock();
            const auto info = client.GetServerInfo(kQueueSampleTimeoutSeconds);
            lock.lock();
            if (info.ok() && !stop_) {
              samples->waiting.push_back(static_cast<double>(info->stats().waiting()));
              samples->running.push_back(static_cast<double>(info->stats().running()));
            }
            changed_.wait_for(lock, kQueueSamplePeriod, [this] { return stop_; });
          }
        }) {}
  ~QueueSampler() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool stop_ = false;
  std::thread thread_;  // last: it uses the others
};

// Refused, or its server was lost. Besides UNAVAILABLE that is CANCELLED, which nobody here does: a
// server of gRPC 1.51 answers so to a call that arrives in the moment of its shutdown; and INTERNAL
// of a stream that a proxy resets because its own connection broke. Another INTERNAL is the
// server's answer, which would be the same again.
bool CanRetry(const RequestRecord& r) {
  return r.code == absl::StatusCode::kUnavailable || r.refused() ||
         (r.code == absl::StatusCode::kCancelled && r.first < 0) ||
         (r.code == absl::StatusCode::kInternal && r.message.starts_with("Received RST_STREAM"));
}

}  // namespace

struct LoadGenerator::Impl {
  ChannelOptions channel;
  std::vector<std::unique_ptr<v1::Inference::Stub>> stubs;
};

LoadGenerator::LoadGenerator(const ChannelOptions& channel, int connections)
    : impl_(std::make_unique<Impl>()) {
  impl_->channel = channel;
  impl_->channel.own_connection = true;
  for (int i = 0; i < std::max(connections, 1); ++i) {
    impl_->stubs.push_back(v1::Inference::NewStub(MakeChannel(impl_->channel)));
  }
}

LoadGenerator::~LoadGenerator() = default;

Load LoadGenerator::Run(const RequestSource& source, const LoadOptions& options,
                        const std::function<void(const RunProgress&)>& on_progress) {
  Load load;
  std::optional<QueueSampler> sampler;
  if (options.sample_queue) sampler.emplace(impl_->channel, &load.queue);
  RunState run;
  Arrivals arrivals(options.load.request_rate, options.burstiness, options.seed + options.run);
  const bool closed = std::isinf(options.load.request_rate) && options.load.max_concurrency > 0;
  std::deque<RequestRecord> records;  // at fixed addresses: calls write to them
  std::deque<double> free_slots;      // since when
  for (int32_t i = 0; i < options.load.max_concurrency; ++i) free_slots.push_back(0.0);
  using Retry = std::pair<double, size_t>;  // when, which
  std::priority_queue<Retry, std::vector<Retry>, std::greater<>> retries;
  std::mt19937_64 jitter(options.seed);
  RunProgress progress;

  const auto next_arrival = [&] {
    const double time = arrivals.Next();
    const bool enough =
        options.num_requests > 0 && static_cast<int64_t>(records.size()) >= options.num_requests;
    if (enough || (options.duration > 0 && time > options.duration)) return kNever;
    return time;
  };
  const auto start = [&](size_t index) {
    RequestRecord& r = records[index];
    const double deadline = options.timeout > 0 ? r.scheduled + options.timeout : kNever;
    auto* call = new StreamCall(&run, index, &r, source.Make(options.run, index));
    call->Start(*impl_->stubs[index % impl_->stubs.size()], deadline);
  };

  double arrival = next_arrival();
  double shown = 0.0;
  while (true) {
    double now = run.Now();
    while (!retries.empty() && retries.top().first <= now) {
      start(retries.top().second);
      retries.pop();
    }
    const auto has_slot = [&] { return options.load.max_concurrency == 0 || !free_slots.empty(); };
    while (arrival <= now && has_slot()) {
      double scheduled = arrival;
      if (options.load.max_concurrency > 0) {
        // In a closed loop a request comes when the one before it has ended.
        if (closed) scheduled = std::max(scheduled, free_slots.front());
        free_slots.pop_front();
      }
      if (closed && options.duration > 0 && scheduled > options.duration) {
        arrival = kNever;
        break;
      }
      RequestRecord& r = records.emplace_back();
      r.scheduled = scheduled;
      r.sent = run.Now();
      ++progress.sent;
      start(records.size() - 1);
      arrival = next_arrival();
      now = run.Now();
    }
    if (arrival == kNever && retries.empty() && progress.done == progress.sent) break;
    double wake = shown + kProgressSeconds;
    if (has_slot()) wake = std::min(wake, arrival);
    if (!retries.empty()) wake = std::min(wake, retries.top().first);
    for (const RunState::Ended& ended : run.WaitUntil(wake)) {
      RequestRecord& r = records[ended.index];
      if (!r.ok() && CanRetry(r) && r.attempts <= options.retries) {
        // The answer begins anew: what came of the broken one is of no use to its reader.
        const double backoff = ended.pushback >= 0
                                   ? ended.pushback
                                   : std::min(kFirstBackoffSeconds * std::exp2(r.attempts - 1),
                                              kLongestBackoffSeconds);
        const double spread = std::uniform_real_distribution<double>(0.8, 1.2)(jitter);
        RequestRecord again;
        again.scheduled = r.scheduled;
        again.sent = r.sent;
        again.attempts = r.attempts + 1;
        retries.emplace(r.end + backoff * spread, ended.index);
        r = std::move(again);
        continue;
      }
      ++progress.done;
      progress.not_ok += r.ok() ? 0 : 1;
      if (options.load.max_concurrency > 0) free_slots.push_back(r.end);
    }
    now = run.Now();
    if (now >= shown + kProgressSeconds) {
      shown = now;
      progress.seconds = now;
      if (on_progress) on_progress(progress);
    }
  }
  sampler.reset();
  load.records.assign(std::make_move_iterator(records.begin()),
                      std::make_move_iterator(records.end()));
  return load;
}

}  // namespace quantd::bench

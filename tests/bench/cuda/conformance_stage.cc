// conformance: every test of this program (ops x formats x shapes against ref, golden fixtures,
// properties of the engine) in several processes at once, most of whose time is ref's on the host.
// A test that fails ends its process, for it may have broken the device; one that crashes or hangs
// is one failed item and not the end of the stage.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <mutex>
#include <set>
#include <thread>

#include "kernels/cuda/weight_view.h"
#include "kernels/status.h"
#include "tests/bench/cuda/stages.h"
#include "tests/bench/cuda/test_process.h"
#include "tests/engine/models/model_runner.h"
#include "tests/kernels/conformance.h"

namespace quantd::gpu {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kSecondsPerProcess = 120;
constexpr int kMaxJobs = 12;
constexpr size_t kMaxTestsAtOnce = 24;  // of one process
// What --quick runs: a few of each kind, seconds on the emulated device.
constexpr std::string_view kQuick[] = {"OpConformance.RmsNorm/",
                                       "OpConformance.GatherCopiesRows/",
                                       "OpConformance.GatedActivation/",
                                       "LinearConformance.WorksWithoutBiasAndWithoutRows/",
                                       "GoldenTest.LogitsAreAsCloseToFloat32AsTheLibrarysOwn/"
                                       "bnb_nf4_dq_cuda",
                                       "EngineOnDevice.",
                                       "MemoryOnDevice."};
// They ask the device how much is taken of it, by whomever.
constexpr std::string_view kAlone = "MemoryOnDevice.";

bool IsQuick(const std::string& test) {
  return std::any_of(std::begin(kQuick), std::end(kQuick),
                     [&](std::string_view part) { return test.find(part) != std::string::npos; });
}

/// Tests on their way from the list to the result file, shared by the threads that run processes.
class TestQueue {
 public:
  TestQueue(const StageOptions& options, ResultFile& file, const std::vector<std::string>& tests,
            size_t jobs)
      : options_(options), file_(file), jobs_(jobs), waiting_(tests.begin(), tests.end()) {}

  /// Runs processes until nothing is left or time is over.
  void Work(Clock::time_point deadline) {
    while (Clock::now() < deadline) {
      const std::vector<std::string> batch = Take();
      if (batch.empty()) return;
      std::set<std::string> settled;
      const auto settle = [&](const std::string& test, json result) {
        settled.insert(test);
        Store(test, std::move(result));
      };
      const Progress progress = RunTestProcess(options_.backend, batch, kSecondsPerProcess, settle);
      // Only a test that had all of a process's time to itself is to blame for its end.
      if (!progress.unfinished.empty() && (!progress.timed_out || settled.empty())) {
        settle(progress.unfinished,
               {{"error",
                 fmt::format("{}\n{}",
                             progress.timed_out ? fmt::format("over {} s", kSecondsPerProcess)
                                                : fmt::format("exit code {}", progress.exit_code),
                             progress.output)}});
      } else if (settled.empty()) {
        settle(batch[0], {{"error", fmt::format("no test ran: exit code {}\n{}", progress.exit_code,
                                                progress.output)}});
      }
      std::vector<std::string> rest = batch;
      std::erase_if(rest, [&](const std::string& test) { return settled.contains(test); });
      GiveBack(rest);
    }
  }

  size_t passed() const { return passed_; }
  size_t failed() const { return failed_; }
  size_t left() const { return waiting_.size(); }
  const absl::Status& status() const { return status_; }

 private:
  std::vector<std::string> Take() {
    const std::lock_guard lock(mutex_);
    if (!status_.ok()) return {};
    // Small batches at the end, so that all processes end together.
    const size_t count = std::clamp<size_t>(waiting_.size() / (2 * jobs_), 1, kMaxTestsAtOnce);
    std::vector<std::string> batch;
    while (batch.size() < count && !waiting_.empty()) {
      batch.push_back(std::move(waiting_.front()));
      waiting_.pop_front();
    }
    return batch;
  }

  void GiveBack(const std::vector<std::string>& tests) {
    const std::lock_guard lock(mutex_);
    waiting_.insert(waiting_.begin(), tests.begin(), tests.end());
  }

  void Store(const std::string& test, json result) {
    const std::lock_guard lock(mutex_);
    ++(result.contains("error") ? failed_ : passed_);
    status_.Update(StoreItem(file_, test, std::move(result)));
  }

  const StageOptions& options_;
  ResultFile& file_;
  const size_t jobs_;
  std::mutex mutex_;
  std::deque<std::string> waiting_;
  size_t passed_ = 0, failed_ = 0;
  absl::Status status_;  // of writing results
};

size_t Jobs(const StageOptions& options) {
  if (options.jobs > 0) return static_cast<size_t>(options.jobs);
  return std::clamp<size_t>(std::thread::hardware_concurrency() * 3 / 4, 1, kMaxJobs);
}

}  // namespace

int RunTests(const std::string& backend, bool report, int argc, char** argv) {
  const bool device = backend == "cuda" || backend == "cuda-emulated";
  std::vector<testing::BackendUnderTest> backends;
  for (const Determinism determinism : {Determinism::kDefault, Determinism::kBatchInvariant}) {
    const bool invariant = determinism == Determinism::kBatchInvariant;
    if (invariant && !device) continue;
    testing::BackendUnderTest b;
    b.name = backend + (invariant ? "_invariant" : "");
    std::replace(b.name.begin(), b.name.end(), '-', '_');  // tests' names have no '-'
    b.create = [backend, determinism] {  // later: listing the tests takes no device
      auto made = MakeBackend(backend, determinism);
      QUANTD_CHECK(made.ok(), "{}", Message(made.status()));
      return *std::move(made);
    };
    if (device) {
      b.batch_invariant = invariant;
      b.rounds_to_16_bit = true;
      b.tile_columns = kTileCols;
    }
    backends.push_back(std::move(b));
  }
  testing_support::TheDeviceUnderTest() = {backends[0].name, [backend](Determinism determinism) {
                                             auto made = MakeBackend(backend, determinism);
                                             QUANTD_CHECK(made.ok(), "{}", Message(made.status()));
                                             return *std::move(made);
                                           }};
  testing::SetBackendsUnderTest(std::move(backends));
  ::testing::InitGoogleTest(&argc, argv);
  if (report) AddReportingListener();
  return RUN_ALL_TESTS();
}

absl::StatusOr<Outcome> RunConformance(const StageOptions& options) {
  std::string device;
  {
    ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
    device = DeviceName(*backend);
  }
  ASSIGN_OR_RETURN(ResultFile file, ResultFile::Open(options.out, device, "conformance",
                                                     options.quick, options.fresh));
  std::vector<std::string> tests = ListTests(options.backend);
  if (options.quick) std::erase_if(tests, [](const std::string& test) { return !IsQuick(test); });
  if (tests.empty()) return Internal("there is no test to run");
  ASSIGN_OR_RETURN(const std::vector<std::string> pending, PendingItems(options, file, tests));

  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(options.seconds);
  std::vector<std::string> together, alone;
  for (const std::string& test : pending) {
    (test.find(kAlone) == std::string::npos ? together : alone).push_back(test);
  }
  size_t passed = 0, failed = 0, left = 0;
  const auto run = [&](const std::vector<std::string>& some, size_t most) {
    const size_t jobs = std::min(most, std::max<size_t>(some.size(), 1));
    TestQueue queue(options, file, some, jobs);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < jobs; ++i) threads.emplace_back([&] { queue.Work(deadline); });
    for (std::thread& thread : threads) thread.join();
    passed += queue.passed();
    failed += queue.failed();
    left += queue.left();
    return queue.status();
  };
  RETURN_IF_ERROR(run(together, Jobs(options)));
  RETURN_IF_ERROR(run(alone, 1));
  return Summary(file, passed, failed, left);
}

}  // namespace quantd::gpu

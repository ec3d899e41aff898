// The stages of quantd_gpu, what they share: options, the backend, the result file.
//
// A stage is a list of items (a test, a kernel at a shape, a profile). Each item is measured alone,
// written to the result file at once and not repeated by a later run of the same program, so that a
// stage cut short goes on where it stopped.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/bench/cuda/result_file.h"

namespace quantd::gpu {

struct StageOptions {
  std::string backend = "cuda";  // or "cuda-emulated", "cpu", "ref"
  std::string out = "tests/bench/results";
  std::string models = "build/bench-models";  // where e2e writes its random checkpoint
  std::string only;                           // items whose name contains this
  bool quick = false;  // shapes and a selection of items small enough for the emulated device
  bool fresh = false;  // forget the results this stage has
  int seconds = 450;   // no item is begun after that
  int jobs = 0;        // processes of conformance at once; 0: as the machine's threads allow
};

/// How a stage ended, as exit codes.
enum class Outcome : int { kPassed = 0, kFailed = 1, kUnfinished = 3 };

/// A new backend. UNAVAILABLE when the machine or this program lacks what it takes.
absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(
    const std::string& name, Determinism determinism = Determinism::kDefault);

absl::StatusOr<Outcome> RunFacts(const StageOptions& options);
absl::StatusOr<Outcome> RunConformance(const StageOptions& options);
absl::StatusOr<Outcome> RunBench(const StageOptions& options);
absl::StatusOr<Outcome> RunE2e(const StageOptions& options);

/// One process of the conformance stage: GoogleTest over this program's tests, on one backend.
/// With `report`, a line is printed as each test begins and ends (test_process.h), and the process
/// ends at the first test that fails: it may have broken the device.
int RunTests(const std::string& backend, bool report, int argc, char** argv);

/// "NVIDIA H200" of "NVIDIA H200, 132 multiprocessors": what a result file is named after.
std::string DeviceName(const Backend& backend);

/// What of `names` the options ask for and `file` has no result for, in order; then what failed
/// before: it may take the device with it again. INVALID_ARGUMENT when the options ask for none.
absl::StatusOr<std::vector<std::string>> PendingItems(const StageOptions& options,
                                                      const ResultFile& file,
                                                      const std::vector<std::string>& names);

/// Prints an item's result and stores it.
absl::Status StoreItem(ResultFile& file, const std::string& name, nlohmann::json result);

/// Prints how many of this run's items passed, failed and were not begun.
Outcome Summary(const ResultFile& file, size_t passed, size_t failed, size_t left);

/// An item of a stage: `run` gives what is written under `name`; an error is written too and fails
/// the stage.
struct Item {
  std::string name;
  std::function<absl::StatusOr<nlohmann::json>()> run;
};

/// Runs what `file` has no result for, in order, then what failed before, until `options.seconds`
/// have passed or an item is UNAVAILABLE: a device that failed is lost for this process.
absl::StatusOr<Outcome> RunItems(const StageOptions& options, ResultFile& file,
                                 const std::vector<Item>& items);

/// Seconds of one call of `step`, which submits work to `backend`: the median of seven runs, each
/// of as many calls in a row as take `floor_seconds`, replayed from a graph where the backend has
/// them. `owner` names the step for Backend::Run.
absl::StatusOr<double> MedianSeconds(Backend& backend, uint64_t owner,
                                     const std::function<void()>& step, double floor_seconds);

}  // namespace quantd::gpu

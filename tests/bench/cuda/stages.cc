// What the stages share: backends by name, items in order, time by the clock of the host.
#include "tests/bench/cuda/stages.h"

#include <algorithm>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"

namespace quantd::gpu {

using Clock = std::chrono::steady_clock;

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const std::string& name,
                                                     Determinism determinism) {
  [[maybe_unused]] const CudaBackendOptions cuda_options = {.determinism = determinism};
  if (name == "ref") return CreateRefBackend();
  if (name == "cpu") return CreateCpuBackend();
  if (name == "cuda-emulated") {
#ifdef QUANTD_HAS_CUDA_EMULATION
    return cuda_emulated::CreateBackend(cuda_options);
#else
    return Unavailable("this program was built without the emulated device");
#endif
  }
  if (name == "cuda") {
#ifdef QUANTD_HAS_CUDA
    auto backend = cuda::CreateBackend(cuda_options);
    if (!backend.ok()) return Annotate(backend.status(), "no GPU");
    return backend;
#else
    return Unavailable("no GPU: this program was built without nvcc");
#endif
  }
  return InvalidArgument("--backend: \"{}\" is not one of cuda, cuda-emulated, cpu, ref", name);
}

absl::StatusOr<Outcome> RunItems(const StageOptions& options, ResultFile& file,
                                 const std::vector<Item>& items) {
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(options.seconds);
  std::vector<const Item*> fresh, failed_before;
  size_t wanted = 0, failed = 0, left = 0;
  for (const Item& item : items) {
    if (!options.only.empty() && item.name.find(options.only) == std::string::npos) continue;
    ++wanted;
    if (!file.Has(item.name)) {
      fresh.push_back(&item);
    } else if (file.Get(item.name).contains("error")) {
      failed_before.push_back(&item);
    }
  }
  if (wanted == 0) return InvalidArgument("--only: no item's name contains \"{}\"", options.only);
  const size_t kept = wanted - fresh.size() - failed_before.size();
  // What failed comes last: it may take the device with it again.
  std::vector<const Item*> queue = fresh;
  queue.insert(queue.end(), failed_before.begin(), failed_before.end());
  bool lost = false;  // the device, for this process
  for (const Item* item : queue) {
    if (lost || Clock::now() >= deadline) {
      ++left;
      continue;
    }
    auto value = item->run();
    lost = absl::IsUnavailable(value.status());
    nlohmann::json result =
        value.ok() ? *std::move(value) : nlohmann::json{{"error", Message(value.status())}};
    const bool bad = result.contains("error");
    failed += bad ? 1 : 0;
    fmt::print("{}{} {}\n", bad ? "FAILED " : "", item->name, result.dump());
    std::fflush(stdout);
    RETURN_IF_ERROR(file.Put(item->name, std::move(result)));
  }
  fmt::print("{} items: {} from an earlier run, {} failed, {} not begun; results in {}\n", wanted,
             kept, failed, left, file.path().string());
  if (left > 0) {
    fmt::print("{}: run the stage again to go on\n", lost ? "the device is lost" : "out of time");
  }
  if (failed > 0) return Outcome::kFailed;
  return left > 0 ? Outcome::kUnfinished : Outcome::kPassed;
}

absl::StatusOr<double> MedianSeconds(Backend& backend, uint64_t owner,
                                     const std::function<void()>& step, double floor_seconds) {
  constexpr int kRuns = 7;
  const auto seconds_of = [&](int64_t calls) -> absl::StatusOr<double> {
    const auto start = Clock::now();
    for (int64_t i = 0; i < calls; ++i) backend.Run({.owner = owner, .shape = {}}, step);
    RETURN_IF_ERROR(backend.Synchronize());
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  RETURN_IF_ERROR(seconds_of(3).status());  // code is loaded, a graph is captured and replayed
  int64_t calls = 1;
  while (calls < (int64_t{1} << 20)) {
    ASSIGN_OR_RETURN(const double seconds, seconds_of(calls));
    if (seconds >= floor_seconds) break;
    calls *= 2;
  }
  std::vector<double> runs;
  for (int i = 0; i < kRuns; ++i) {
    ASSIGN_OR_RETURN(const double seconds, seconds_of(calls));
    runs.push_back(seconds / static_cast<double>(calls));
  }
  std::nth_element(runs.begin(), runs.begin() + kRuns / 2, runs.end());
  return runs[kRuns / 2];
}

}  // namespace quantd::gpu

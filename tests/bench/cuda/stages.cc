// What the stages share: backends by name, items in order, time by the clock of the host.
#include "tests/bench/cuda/stages.h"

#include <algorithm>
#include <map>

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

std::string DeviceName(const Backend& backend) {
  const std::string description = backend.info().description;
  return description.substr(0, description.find(','));
}

absl::StatusOr<std::vector<std::string>> PendingItems(const StageOptions& options,
                                                      const ResultFile& file,
                                                      const std::vector<std::string>& names) {
  std::vector<std::string> pending, failed_before;
  size_t wanted = 0;
  for (const std::string& name : names) {
    if (!options.only.empty() && name.find(options.only) == std::string::npos) continue;
    ++wanted;
    if (!file.Has(name)) {
      pending.push_back(name);
    } else if (file.Get(name).contains("error")) {
      failed_before.push_back(name);
    }
  }
  if (wanted == 0) return InvalidArgument("--only: no item's name contains \"{}\"", options.only);
  if (const size_t kept = wanted - pending.size() - failed_before.size(); kept > 0) {
    fmt::print("{} items from an earlier run\n", kept);
  }
  pending.insert(pending.end(), failed_before.begin(), failed_before.end());
  return pending;
}

absl::Status StoreItem(ResultFile& file, const std::string& name, nlohmann::json result) {
  fmt::print("{}{} {}\n", result.contains("error") ? "FAILED " : "", name, result.dump());
  std::fflush(stdout);
  return file.Put(name, std::move(result));
}

Outcome Summary(const ResultFile& file, size_t passed, size_t failed, size_t left) {
  fmt::print("{} passed, {} failed, {} not begun; results in {}\n", passed, failed, left,
             file.path().string());
  if (left > 0) fmt::print("run the stage again to go on\n");
  if (failed > 0) return Outcome::kFailed;
  return left > 0 ? Outcome::kUnfinished : Outcome::kPassed;
}

absl::StatusOr<Outcome> RunItems(const StageOptions& options, ResultFile& file,
                                 const std::vector<Item>& items) {
  const Clock::time_point deadline = Clock::now() + std::chrono::seconds(options.seconds);
  std::map<std::string, const Item*> by_name;
  std::vector<std::string> names;
  for (const Item& item : items) {
    by_name[item.name] = &item;
    names.push_back(item.name);
  }
  ASSIGN_OR_RETURN(const std::vector<std::string> pending, PendingItems(options, file, names));
  size_t passed = 0, failed = 0, left = 0;
  bool lost = false;  // the device, for this process
  for (const std::string& name : pending) {
    if (lost || Clock::now() >= deadline) {
      ++left;
      continue;
    }
    auto value = by_name[name]->run();
    lost = absl::IsUnavailable(value.status());
    nlohmann::json result =
        value.ok() ? *std::move(value) : nlohmann::json{{"error", Message(value.status())}};
    ++(result.contains("error") ? failed : passed);
    RETURN_IF_ERROR(StoreItem(file, name, std::move(result)));
  }
  if (lost) fmt::print("the device is lost\n");
  return Summary(file, passed, failed, left);
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

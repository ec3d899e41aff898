// e2e: the engine on a model of Llama-3-8B's shape with random weights: load time (quantizing on
// the way), prefill of 512 and 4096 tokens, decode of 1, 8, 32 and 64 sequences at context 512, and
// the memory that the device says is gone beside what is booked.
// Medians of three runs, with `determinism: batch_invariant` beside the default; decode counts only
// steps in which every row is one sequence's next token.
#include <algorithm>
#include <random>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/load.h"
#include "engine/weights/profile.h"
#include "kernels/status.h"
#include "tests/bench/cuda/stages.h"
#include "tests/bench/engine/random_checkpoint.h"

namespace quantd::gpu {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr int kRuns = 3;

struct Plan {
  BenchShape shape;
  std::vector<std::string> profiles;
  std::vector<std::string> invariant;  // those measured with batch_invariant too
  std::vector<int> batches;
  std::vector<int> prefills;
  int context = 0;  // tokens before the first decoded one
  int decoded = 0;  // tokens a sequence
};

Plan FullPlan() {
  return {.shape = {"llama3-8b", 4096, 14336, 32, 32, 8, 128256, 8192},
          .profiles = {"nf4-dq", "bf16", "int8", "nf4", "int8-no-outliers"},
          .invariant = {"nf4-dq", "bf16"},
          .batches = {1, 8, 32, 64},
          .prefills = {512, 4096},
          .context = 512,
          .decoded = 64};
}

Plan QuickPlan() {
  return {.shape = {"tiny", 64, 128, 1, 2, 1, 128, 256},
          .profiles = {"nf4-dq"},
          .invariant = {"nf4-dq"},
          .batches = {1, 2},
          .prefills = {24},
          .context = 8,
          .decoded = 4};
}

// When each step ended and how many rows it had. Written by the engine's thread, read when it
// idles.
class StepTimes : public EngineObserver {
 public:
  void OnStep(int32_t rows) override { steps_.emplace_back(rows, Clock::now()); }
  void Clear() { steps_.clear(); }
  /// Seconds of a step of exactly `rows` rows: the median; 0 when there was none.
  double SecondsOfStep(int32_t rows) const {
    std::vector<double> seconds;
    for (size_t i = 1; i < steps_.size(); ++i) {
      if (steps_[i].first != rows || steps_[i - 1].first != rows) continue;
      seconds.push_back(
          std::chrono::duration<double>(steps_[i].second - steps_[i - 1].second).count());
    }
    if (seconds.empty()) return 0;
    std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size()) / 2,
                     seconds.end());
    return seconds[seconds.size() / 2];
  }

 private:
  std::vector<std::pair<int32_t, Clock::time_point>> steps_;
};

Request RandomRequest(std::mt19937& random, int64_t vocab, int prompt, int max_tokens) {
  Request request;
  for (int i = 0; i < prompt; ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.bypass_prefix_cache = true;
  return request;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::StatusOr<json> MeasureProfile(const StageOptions& stage, const Plan& plan,
                                    const std::string& profile, Determinism determinism) {
  ASSIGN_OR_RETURN(const auto folder, RandomCheckpoint(plan.shape, stage.models));
  ASSIGN_OR_RETURN(const auto backend, MakeBackend(stage.backend, determinism));
  const int64_t free_before = backend->info().free_memory;
  const int longest = *std::max_element(plan.prefills.begin(), plan.prefills.end());
  LoadOptions load;
  load.model_dir = folder;
  load.max_rows = longest;
  ASSIGN_OR_RETURN(load.profile, LoadProfile(profile));
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(*backend, load));
  const MemoryAccount& memory = backend->memory();
  const int64_t step_bytes =
      memory.Bytes(MemoryComponent::kWeights) + memory.Bytes(MemoryComponent::kScales) +
      memory.Bytes(MemoryComponent::kHead) + memory.Bytes(MemoryComponent::kNorms);
  const int64_t vocab = model.spec.vocab_size;
  json result = {{"load_seconds", model.report.seconds},
                 {"resident_bytes", model.report.resident_bytes},
                 {"bits_per_weight", model.report.bits_per_weight()},
                 {"weight_bytes_per_step", step_bytes},
                 {"context", plan.context}};

  EngineOptions options;
  options.max_num_seqs = *std::max_element(plan.batches.begin(), plan.batches.end());
  options.max_num_batched_tokens = longest;
  options.max_model_len = std::max(longest, plan.context + plan.decoded) + 1;
  options.pipeline_depth = 1;
  const int per_sequence = (plan.context + plan.decoded) / options.block_size + 2;
  options.num_kv_blocks =
      std::max(options.max_num_seqs * per_sequence, longest / options.block_size + 2);
  StepTimes steps;
  ASSIGN_OR_RETURN(const auto engine,
                   Engine::Create(*backend, std::move(model), nullptr, options, &steps));
  std::mt19937 random(1);
  RETURN_IF_ERROR(Generate(*engine, RandomRequest(random, vocab, plan.context, 8)).status());

  for (const int tokens : plan.prefills) {
    std::vector<double> seconds;
    for (int run = 0; run <= kRuns; ++run) {  // the first of a shape warms it up
      Request request = RandomRequest(random, vocab, tokens, 1);
      const auto start = Clock::now();
      RETURN_IF_ERROR(Generate(*engine, std::move(request)).status());
      if (run > 0) {
        seconds.push_back(std::chrono::duration<double>(Clock::now() - start).count());
      }
    }
    result["prefill_tokens_per_s"][fmt::format("{}", tokens)] = tokens / Median(seconds);
  }
  for (const int batch : plan.batches) {
    std::vector<double> seconds;
    for (int run = 0; run < kRuns; ++run) {
      std::vector<Request> requests;
      for (int i = 0; i < batch; ++i) {
        requests.push_back(RandomRequest(random, vocab, plan.context, plan.decoded));
      }
      steps.Clear();
      RETURN_IF_ERROR(GenerateAll(*engine, std::move(requests)).status());
      seconds.push_back(steps.SecondsOfStep(batch));
    }
    const double step = Median(seconds);
    if (step <= 0) return Internal("no step decoded all {} sequences", batch);
    result["decode_tokens_per_s"][fmt::format("{}", batch)] = batch / step;
    result["decode_step_ms"][fmt::format("{}", batch)] = step * 1e3;
  }
  // What belongs to no component: kernels that the driver has loaded, graphs, cuBLASLt, and what
  // the backend holds in reserve. The context was there before. Only right where no other process
  // uses the device.
  const int64_t taken = free_before - backend->info().free_memory;
  result["memory"] = {{"booked_bytes", memory.Total()},
                      {"taken_bytes", taken},
                      {"beside_bytes", taken - memory.Total()}};
  return result;
}

}  // namespace

absl::StatusOr<Outcome> RunE2e(const StageOptions& options) {
  std::string device;
  {
    ASSIGN_OR_RETURN(const auto backend, MakeBackend(options.backend));
    device = DeviceName(*backend);
  }
  ASSIGN_OR_RETURN(ResultFile file,
                   ResultFile::Open(options.out, device, "e2e", options.quick, options.fresh));
  const Plan plan = options.quick ? QuickPlan() : FullPlan();
  std::vector<Item> items;
  for (const Determinism determinism : {Determinism::kDefault, Determinism::kBatchInvariant}) {
    const bool invariant = determinism == Determinism::kBatchInvariant;
    for (const std::string& profile : invariant ? plan.invariant : plan.profiles) {
      items.push_back({plan.shape.name + "/" + profile + (invariant ? "/batch_invariant" : ""),
                       [&options, &plan, profile, determinism] {
                         return MeasureProfile(options, plan, profile, determinism);
                       }});
    }
  }
  return RunItems(options, file, items);
}

}  // namespace quantd::gpu

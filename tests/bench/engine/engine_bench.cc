// engine_bench: prefill and decode speed, weights read, and memory of profiles on a model shape.
//
//   engine_bench --shape tl11 --profiles nf4,nf4-dq,int8,bf16 --threads 2 --batches 1,4,8,16
//   engine_bench --shape demo --profiles nf4-dq --json > result.json
//
// Shapes with random weights are written once to build/bench-models. Speeds are medians of three
// runs; decode counts only steps in which all requests of the batch decode. The share of bandwidth
// compares the bytes of weights one step reads (all but the embedding, whose rows are gathered)
// with what a plain read loop reached in this same program just before.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/load.h"
#include "engine/weights/profile.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/status.h"
#include "tests/bench/engine/machine.h"
#include "tests/bench/engine/random_checkpoint.h"

namespace quantd {
namespace {

using nlohmann::json;

constexpr int kRuns = 3;
constexpr int32_t kDecodeTokens = 128;
constexpr int32_t kDecodePrompt = 16;
constexpr int32_t kPrefillTokens = 512;

struct Flags {
  std::string shape = "tl11";
  std::vector<std::string> profiles = {"nf4-dq", "int8", "bf16"};
  std::vector<int> batches = {1, 4, 8, 16};
  int threads = 0;
  bool as_json = false;
};

std::vector<std::string> Split(const std::string& text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

std::optional<int> ParseInt(const std::string& text) {
  if (text.empty() || text.size() > 6 ||
      text.find_first_not_of("0123456789") != std::string::npos) {
    return std::nullopt;
  }
  return std::stoi(text);
}

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      flags.as_json = true;
      continue;
    }
    if (i + 1 == argc)
      return InvalidArgument("{}: a value is missing or the flag is unknown", name);
    const std::string value = argv[++i];
    if (name == "--shape") {
      flags.shape = value;
    } else if (name == "--profiles") {
      flags.profiles = Split(value);
    } else if (name == "--threads" && ParseInt(value).has_value()) {
      flags.threads = *ParseInt(value);
    } else if (name == "--batches") {
      flags.batches.clear();
      for (const std::string& part : Split(value)) {
        const auto batch = ParseInt(part);
        if (!batch.has_value() || *batch < 1 || *batch > 64) {
          return InvalidArgument("--batches: \"{}\" is not 1 to 64", part);
        }
        flags.batches.push_back(*batch);
      }
    } else {
      return InvalidArgument(
          "{} {}: allowed are --shape tl11|m160|demo, --profiles a,b, --threads N, --batches 1,4, "
          "--json",
          name, value);
    }
  }
  if (flags.threads == 0) flags.threads = static_cast<int>(std::thread::hardware_concurrency());
  return flags;
}

absl::StatusOr<std::filesystem::path> ModelFolder(const std::string& shape) {
  // The program lies in <project>/build/<preset>.
  std::error_code error;
  const auto build =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path().parent_path();
  if (shape == "demo") return build.parent_path() / "demo" / "model";
  for (const BenchShape& s : BenchShapes()) {
    if (s.name == shape) {
      return RandomCheckpoint(s, build / "bench-models");
    }
  }
  return InvalidArgument("--shape: \"{}\" is not one of tl11, m160, demo", shape);
}

// When each step ended and how many rows it had. Written by the engine thread, read when it is
// idle: the last step is reported before the last update.
class StepTimes : public EngineObserver {
 public:
  void OnStep(int32_t tokens) override { steps_.emplace_back(tokens, Clock::now()); }
  void Clear() { steps_.clear(); }
  /// Tokens a second over the steps of exactly `rows` rows.
  double TokensPerSecond(int32_t rows) const {
    int64_t count = 0;
    Clock::duration time{};
    for (size_t i = 1; i < steps_.size(); ++i) {
      if (steps_[i].first != rows || steps_[i - 1].first != rows) continue;
      time += steps_[i].second - steps_[i - 1].second;
      ++count;
    }
    return count == 0
               ? 0.0
               : static_cast<double>(count * rows) / std::chrono::duration<double>(time).count();
  }

 private:
  std::vector<std::pair<int32_t, Clock::time_point>> steps_;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

Request RandomRequest(std::mt19937& random, int64_t vocab, int32_t prompt, int32_t max_tokens) {
  Request request;
  for (int32_t i = 0; i < prompt; ++i) {
    request.prompt_ids.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
  }
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  request.bypass_prefix_cache = true;
  return request;
}

struct ProfileResult {
  std::string profile;
  std::string isa;
  double load_seconds = 0;
  double bits_per_weight = 0;
  int64_t resident_bytes = 0;   // the model: weights, norms, embedding
  int64_t step_bytes = 0;       // of weights read by one step
  int64_t peak_load_bytes = 0;  // ours, while loading
  int64_t rss = 0;              // VmRSS after the measurements
  int64_t peak_rss = 0;         // VmHWM, KV cache and everything included
  int32_t prefill_tokens = 0;
  double prefill = 0;            // tokens/s
  std::map<int, double> decode;  // batch -> tokens/s
};

absl::StatusOr<ProfileResult> Measure(const Flags& flags, const std::filesystem::path& folder,
                                      const std::string& profile) {
  ProfileResult result;
  result.profile = profile;
  ResetPeakResident();
  ASSIGN_OR_RETURN(auto backend,
                   CreateCpuBackend({.num_threads = flags.threads, .isa = std::nullopt}));
  result.isa = backend->info().isa;
  LoadOptions load;
  load.model_dir = folder;
  load.max_rows = kPrefillTokens;
  ASSIGN_OR_RETURN(load.profile, LoadProfile(profile));
  ASSIGN_OR_RETURN(LoadedModel model, LoadModel(*backend, load));
  result.load_seconds = model.report.seconds;
  result.bits_per_weight = model.report.bits_per_weight();
  result.resident_bytes = model.report.resident_bytes;
  result.peak_load_bytes = model.report.peak_load_bytes;
  const MemoryAccount& memory = backend->memory();
  result.step_bytes = memory.Bytes(MemoryComponent::kWeights) +
                      memory.Bytes(MemoryComponent::kScales) +
                      memory.Bytes(MemoryComponent::kHead) + memory.Bytes(MemoryComponent::kNorms);
  if (model.spec.tie_word_embeddings)
    result.step_bytes += memory.Bytes(MemoryComponent::kEmbedding);

  const int64_t vocab = model.spec.vocab_size;
  EngineOptions options;
  options.max_num_seqs = *std::max_element(flags.batches.begin(), flags.batches.end());
  options.max_num_batched_tokens = kPrefillTokens;
  options.max_model_len =
      static_cast<int32_t>(std::min<int64_t>(1024, model.spec.max_position_embeddings));
  const int32_t per_sequence = (kDecodePrompt + kDecodeTokens) / options.block_size + 1;
  options.num_kv_blocks =
      std::max(options.max_num_seqs * per_sequence, kPrefillTokens / options.block_size + 1);
  const int32_t prefill = std::min(kPrefillTokens, options.max_model_len - 1);
  result.prefill_tokens = prefill;
  StepTimes steps;
  ASSIGN_OR_RETURN(auto engine,
                   Engine::Create(*backend, std::move(model), nullptr, options, &steps));

  std::mt19937 random(1);
  RETURN_IF_ERROR(
      Generate(*engine, RandomRequest(random, vocab, kDecodePrompt, 8)).status());  // warm-up
  std::vector<double> speeds;
  for (int run = 0; run < kRuns; ++run) {
    Request request = RandomRequest(random, vocab, prefill, 1);
    const auto start = Clock::now();
    RETURN_IF_ERROR(Generate(*engine, std::move(request)).status());
    speeds.push_back(prefill / std::chrono::duration<double>(Clock::now() - start).count());
  }
  result.prefill = Median(speeds);
  for (const int batch : flags.batches) {
    speeds.clear();
    for (int run = 0; run < kRuns; ++run) {
      std::vector<Request> requests;
      for (int i = 0; i < batch; ++i) {
        requests.push_back(RandomRequest(random, vocab, kDecodePrompt, kDecodeTokens));
      }
      steps.Clear();
      RETURN_IF_ERROR(GenerateAll(*engine, std::move(requests)).status());
      speeds.push_back(steps.TokensPerSecond(batch));
    }
    result.decode[batch] = Median(speeds);
  }
  result.rss = ResidentBytes();
  result.peak_rss = PeakResidentBytes();
  return result;
}

constexpr double kMega = 1e6;

void PrintTable(const Flags& flags, double bandwidth, const std::vector<ProfileResult>& results) {
  fmt::print("shape {}, {} threads, {}, read bandwidth {:.1f} GB/s\n\n", flags.shape, flags.threads,
             results.empty() ? "" : results[0].isa, bandwidth / 1e9);
  std::string head =
      "| profile | bits/weight | resident MB | peak RSS MB | MB/step | prefill tok/s |";
  std::string rule = "|---|---|---|---|---|---|";
  for (const int batch : flags.batches) {
    head += fmt::format(" b{} tok/s | of bandwidth |", batch);
    rule += "---|---|";
  }
  fmt::print("{}\n{}\n", head, rule);
  for (const ProfileResult& r : results) {
    fmt::print("| {} | {:.2f} | {:.0f} | {:.0f} | {:.0f} | {:.0f} |", r.profile, r.bits_per_weight,
               static_cast<double>(r.resident_bytes) / kMega,
               static_cast<double>(r.peak_rss) / kMega, static_cast<double>(r.step_bytes) / kMega,
               r.prefill);
    for (const auto& [batch, speed] : r.decode) {
      const double read = speed / batch * static_cast<double>(r.step_bytes);
      fmt::print(" {:.1f} | {:.0f}% |", speed, 100.0 * read / bandwidth);
    }
    fmt::print("\n");
  }
}

void PrintJson(const Flags& flags, double bandwidth, const std::vector<ProfileResult>& results) {
  json out = {{"shape", flags.shape},
              {"threads", flags.threads},
              {"read_bytes_per_second", bandwidth},
              {"profiles", json::array()}};
  for (const ProfileResult& r : results) {
    json decode = json::object();
    for (const auto& [batch, speed] : r.decode) decode[fmt::format("{}", batch)] = speed;
    out["profiles"].push_back({{"profile", r.profile},
                               {"isa", r.isa},
                               {"load_seconds", r.load_seconds},
                               {"bits_per_weight", r.bits_per_weight},
                               {"resident_bytes", r.resident_bytes},
                               {"peak_load_bytes", r.peak_load_bytes},
                               {"rss_bytes", r.rss},
                               {"peak_rss_bytes", r.peak_rss},
                               {"bytes_per_step", r.step_bytes},
                               {"prefill_tokens", r.prefill_tokens},
                               {"prefill_tokens_per_second", r.prefill},
                               {"decode_tokens_per_second", decode}});
  }
  fmt::print("{}\n", out.dump(2));
}

int Main(int argc, char** argv) {
  const auto fail = [](const absl::Status& status, int code) {
    fmt::print(stderr, "engine_bench: {}\n", Message(status));
    return code;
  };
  auto flags = ParseFlags(argc, argv);
  if (!flags.ok()) return fail(flags.status(), 2);
  auto folder = ModelFolder(flags->shape);
  if (!folder.ok()) return fail(folder.status(), 1);
  const double bandwidth = MeasureReadBandwidth(flags->threads);
  std::vector<ProfileResult> results;
  for (const std::string& profile : flags->profiles) {
    auto result = Measure(*flags, *folder, profile);
    if (!result.ok()) return fail(Annotate(result.status(), profile), 1);
    fmt::print(stderr, "{}: measured\n", profile);
    results.push_back(std::move(*result));
  }
  if (flags->as_json) {
    PrintJson(*flags, bandwidth, results);
  } else {
    PrintTable(*flags, bandwidth, results);
  }
  return 0;
}

}  // namespace
}  // namespace quantd

int main(int argc, char** argv) { return quantd::Main(argc, argv); }

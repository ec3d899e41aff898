// quantd bench engine: batches of requests given to an engine in this process, without a network.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "engine/plan/bytes_text.h"
#include "engine/weights/json_dump.h"
#include "kernels/status.h"
#include "server/bench/engine_batches.h"
#include "server/cli/backend_flags.h"
#include "server/cli/bench.h"
#include "server/cli/output_file.h"
#include "server/load_progress.h"
#include "server/open_model.h"
#include "server/utc_date.h"
#include "server/version.h"

namespace quantd {
namespace {

struct BenchEngineFlags {
  OpenModelOptions open;
  std::vector<int32_t> batches = {1, 8};
  bench::BatchOptions batch;
  std::string json;
};

struct EngineBenchReport {
  std::string device, profile;
  int64_t resident_bytes = 0;
  double load_seconds = 0.0;
  std::vector<bench::BatchResult> results;
};

std::string EngineBenchJson(const BenchEngineFlags& f, const EngineBenchReport& report) {
  using ordered = nlohmann::ordered_json;
  const auto ms = [](const bench::Summary& s) -> ordered {
    return {{"count", s.count},   {"mean", 1e3 * s.mean}, {"p50", 1e3 * s.p50},
            {"p90", 1e3 * s.p90}, {"p95", 1e3 * s.p95},   {"p99", 1e3 * s.p99},
            {"max", 1e3 * s.max}};
  };
  ordered out = {{"quantd_bench_engine", 1},
                 {"version", kVersion},
                 {"date", UtcDate()},
                 {"model", f.open.model},
                 {"profile", report.profile},
                 {"device", report.device},
                 {"resident_bytes", report.resident_bytes},
                 {"load_seconds", report.load_seconds},
                 {"input_len", f.batch.input_len},
                 {"output_len", f.batch.output_len},
                 {"num_iters", f.batch.iterations},
                 {"seed", f.batch.seed}};
  ordered runs = ordered::array();
  for (const bench::BatchResult& r : report.results) {
    runs.push_back({{"batch_size", r.options.batch},
                    {"prefill_throughput", r.prefill},
                    {"decode_throughput", r.decode},
                    {"output_throughput", r.output},
                    {"step_ms", ms(r.step)},
                    {"ttft_ms", ms(r.ttft)},
                    {"itl_ms", ms(r.itl)},
                    {"e2el_ms", ms(r.e2el)}});
  }
  out["runs"] = std::move(runs);
  return DumpJson(out, 1) + "\n";
}

void PrintEngineBench(const BenchEngineFlags& f, const EngineBenchReport& report) {
  fmt::print("{}, profile {}, {}, on {}\nprompts of {} tokens, outputs of {}, {} times\n\n",
             f.open.model, report.profile, BytesText(report.resident_bytes), report.device,
             f.batch.input_len, f.batch.output_len, f.batch.iterations);
  fmt::print("{:>6} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "batch", "prefill",
             "decode", "output", "step p50", "step p90", "step p99", "TTFT p50", "TTFT p99",
             "E2E p50");
  fmt::print("{:>6} {:>10} {:>10} {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}\n", "", "tokens/s",
             "tokens/s", "tokens/s", "ms", "ms", "ms", "ms", "ms", "ms");
  for (const bench::BatchResult& r : report.results) {
    fmt::print(
        "{:>6} {:>10.1f} {:>10.1f} {:>10.1f} {:>9.2f} {:>9.2f} {:>9.2f} {:>9.1f} {:>9.1f} "
        "{:>9.1f}\n",
        r.options.batch, r.prefill, r.decode, r.output, 1e3 * r.step.p50, 1e3 * r.step.p90,
        1e3 * r.step.p99, 1e3 * r.ttft.p50, 1e3 * r.ttft.p99, 1e3 * r.e2el.p50);
  }
}

absl::Status RunBenchEngine(BenchEngineFlags& f) {
  if (!f.json.empty()) RETURN_IF_ERROR(CheckOutputFile("--json", f.json));
  EngineOptions& engine_options = f.open.engine;
  engine_options.max_num_seqs = *std::max_element(f.batches.begin(), f.batches.end());
  engine_options.max_queued_requests = engine_options.max_num_seqs;
  engine_options.max_num_batched_tokens =
      std::max(engine_options.max_num_batched_tokens, engine_options.max_num_seqs);
  engine_options.max_model_len = f.batch.input_len + f.batch.output_len;
  f.open.need_tokenizer = false;
  std::optional<LoadProgressReporter> progress(std::in_place, isatty(STDERR_FILENO) != 0);
  ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(f.open, std::ref(*progress)));
  progress.reset();
  EngineBenchReport report;
  report.device = opened.backend->info().description;
  report.profile = opened.loaded.report.profile_name;
  report.resident_bytes = opened.loaded.report.resident_bytes;
  report.load_seconds = opened.loaded.report.seconds;
  bench::StepTimes steps;
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Engine> engine,
      Engine::Create(*opened.backend, std::move(opened.loaded), nullptr, opened.engine, &steps));
  for (const int32_t batch : f.batches) {
    bench::BatchOptions options = f.batch;
    options.batch = batch;
    ASSIGN_OR_RETURN(report.results.emplace_back(), bench::MeasureBatch(*engine, steps, options));
    fmt::print(stderr, "batch {}: measured\n", batch);
  }
  if (!f.json.empty()) {
    RETURN_IF_ERROR(WriteOutputFile("--json", f.json, EngineBenchJson(f, report)));
  }
  PrintEngineBench(f, report);
  return absl::OkStatus();
}

}  // namespace

void AddBenchEngine(CLI::App& bench_app, Run* run) {
  auto flags = std::make_shared<BenchEngineFlags>();
  BenchEngineFlags& f = *flags;
  CLI::App* cmd = bench_app.add_subcommand(
      "engine", "Batches of random prompts on an engine in this process: tokens/s, times of steps");
  cmd->add_option("model,--model", f.open.model, "Folder of the model")->required();
  cmd->add_option("--profile", f.open.profile, "Quantization profile: a name, a file, or auto");
  cmd->add_option("--batch-size", f.batches, "Requests at once; several, with commas between")
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  cmd->add_option("--input-len", f.batch.input_len, "Tokens of a prompt")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  cmd->add_option("--output-len", f.batch.output_len, "Tokens of an output")
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  cmd->add_option("--num-iters", f.batch.iterations, "Times that each batch is measured")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  cmd->add_option("--num-iters-warmup", f.batch.warmup_iterations, "Times before, not counted")
      ->check(CLI::Range(0, 100'000))
      ->capture_default_str();
  cmd->add_option("--max-num-batched-tokens", f.open.engine.max_num_batched_tokens,
                  "Tokens of one step, as in a server's configuration")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  cmd->add_option("--seed", f.batch.seed, "For the same prompts again")->capture_default_str();
  cmd->add_option("--json", f.json, "File to write the figures to");
  AddBackendFlags(*cmd, f.open.backend);
  cmd->callback([flags, run] { *run = [flags] { return RunBenchEngine(*flags); }; });
}

}  // namespace quantd

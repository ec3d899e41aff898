// quantd bench serve: a load on a server, and the latencies that its requests see.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "engine/text/utf8.h"
#include "kernels/status.h"
#include "server/bench/bench_report.h"
#include "server/bench/load_generator.h"
#include "server/cli/bench.h"
#include "server/cli/channel_flags.h"
#include "server/cli/output_file.h"
#include "server/one_line.h"
#include "server/read_input.h"
#include "server/terminal_line.h"
#include "server/utc_date.h"
#include "server/version.h"

namespace quantd {
namespace {

constexpr double kAtOnce = std::numeric_limits<double>::infinity();
constexpr int64_t kDefaultRequests = 100;
// A server takes messages of some megabytes, and a load needs no more text.
constexpr size_t kMostTextBytes = size_t{1} << 20;
// Of --sweep: the highest rate, as a share of what the server completed when it was full.
constexpr double kSweepOverload = 1.25;
constexpr int64_t kFewestIdleRequests = 5;
constexpr uint64_t kWarmUpRun = 1'000'000;  // apart from the runs that count

struct BenchServeFlags {
  ChannelFlags channel;
  std::vector<double> rates;
  std::vector<int32_t> concurrencies;
  int32_t sweep = 0;
  std::string arrival = "poisson";
  double burstiness = 1.0;
  int64_t num_prompts = 0;
  double duration = 0.0;
  std::string input_len = "128", output_len = "128";
  int32_t prefix_len = 0;
  double prefix_share = 1.0;
  std::string text;
  bool ignore_eos = true;
  float temperature = 0.0f;
  uint64_t seed = 0;
  int64_t warmups = 1;
  double timeout = 0.0;
  double ready_timeout = 0.0;
  int32_t retries = 0;
  int channels = 4;
  std::vector<std::string> goodput;
  std::string json, html;
  bool save_detailed = false;

  // Made of the above when the command line is read.
  bench::RequestOptions requests;
  bench::Slo slo;
};

// What no single flag's check can see. Throws as CLI11's own checks do: wrong usage.
void CheckBenchServe(BenchServeFlags& f) {
  const auto usage = [](const std::string& message) { throw CLI::ValidationError(message); };
  const auto parse = [&](const char* flag, const std::string& text) {
    auto length = bench::LengthDistribution::Parse(flag, text);
    if (!length.ok()) usage(Message(length.status()));
    return *length;
  };
  f.requests.input = parse("--random-input-len", f.input_len);
  f.requests.output = parse("--random-output-len", f.output_len);
  for (const std::string& text : f.goodput) {
    const absl::Status added = f.slo.Add("--goodput", text);
    if (!added.ok()) usage(Message(added));
  }
  for (const double rate : f.rates) {
    if (!(rate > 0)) usage(fmt::format("--request-rate is {}, allowed: above 0, or inf", rate));
  }
  if (f.rates.size() > 1 && f.concurrencies.size() > 1) {
    usage("--request-rate and --max-concurrency: only one of them takes several values");
  }
  const bool unlimited =
      f.concurrencies.empty() && f.sweep == 0 &&
      (f.rates.empty() || std::find(f.rates.begin(), f.rates.end(), kAtOnce) != f.rates.end());
  if (unlimited && f.duration > 0 && f.num_prompts == 0) {
    usage("--duration needs --request-rate or --max-concurrency, or all its requests come at once");
  }
  if (f.num_prompts == 0 && f.duration <= 0) f.num_prompts = kDefaultRequests;
  if (f.arrival == "constant") f.burstiness = kAtOnce;
}

std::vector<bench::OfferedLoad> OfferedLoads(const BenchServeFlags& f) {
  std::vector<bench::OfferedLoad> loads;
  const std::vector<double> rates = f.rates.empty() ? std::vector<double>{kAtOnce} : f.rates;
  const std::vector<int32_t> limits =
      f.concurrencies.empty() ? std::vector<int32_t>{0} : f.concurrencies;
  for (const double rate : rates) {
    for (const int32_t limit : limits) loads.push_back({rate, limit});
  }
  return loads;
}

std::vector<std::pair<std::string, std::string>> Settings(const BenchServeFlags& f) {
  std::vector<std::pair<std::string, std::string>> out;
  const auto add = [&](const char* name, const std::string& value) {
    out.emplace_back(name, value);
  };
  add("--random-input-len", f.requests.input.ToString());
  add("--random-output-len", f.requests.output.ToString());
  if (f.prefix_len > 0) {
    add("--random-prefix-len", fmt::format("{}", f.prefix_len));
    add("--prefix-share", fmt::format("{:g}", f.prefix_share));
  }
  if (!f.text.empty()) add("--text", f.text);
  if (f.num_prompts > 0) add("--num-prompts", fmt::format("{}", f.num_prompts));
  if (f.duration > 0) add("--duration", fmt::format("{:g}", f.duration));
  if (f.arrival == "constant") {
    add("--arrival", f.arrival);
  } else {
    add("--burstiness", fmt::format("{:g}", f.burstiness));
  }
  add("--seed", fmt::format("{}", f.seed));
  add("--temperature", fmt::format("{:g}", f.temperature));
  if (!f.ignore_eos) add("--no-ignore-eos", "");
  if (f.timeout > 0) add("--timeout", fmt::format("{:g}", f.timeout));
  if (f.retries > 0) add("--retries", fmt::format("{}", f.retries));
  add("--channels", fmt::format("{}", f.channels));
  return out;
}

// The model's facts, as soon as the server is ready to say them.
absl::StatusOr<v1::GetModelInfoResponse> ModelInfoWhenReady(Client& client, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (true) {
    auto info = client.GetModelInfo();
    if (info.ok() || info.status().code() != absl::StatusCode::kUnavailable ||
        std::chrono::steady_clock::now() > end) {
      return info;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

absl::StatusOr<std::vector<int32_t>> TextTokens(Client& client, const std::string& path) {
  const std::string flag = "--text " + path;
  ASSIGN_OR_RETURN(std::string text, ReadInput(path, flag));
  if (text.size() > kMostTextBytes) text.resize(kMostTextBytes);
  // The cut may have gone through a character.
  const size_t valid = ValidUtf8Prefix(text);
  if (valid + 4 < text.size()) return InvalidArgument("{}: not UTF-8 at byte {}", flag, valid);
  text.resize(valid);
  absl::StatusOr<v1::TokenizeResponse> tokens = client.Tokenize(text);
  if (!tokens.ok()) return Annotate(tokens.status(), flag);
  if (tokens->token_ids().empty()) return InvalidArgument("{}: comes to no token", flag);
  return std::vector<int32_t>(tokens->token_ids().begin(), tokens->token_ids().end());
}

class ServeBench {
 public:
  ServeBench(const BenchServeFlags& flags, const bench::RequestSource& source)
      : flags_(flags), source_(source), generator_(flags.channel.options, flags.channels) {}

  void WarmUp() {
    if (flags_.warmups == 0) return;
    bench::LoadOptions options = Options(
        {kAtOnce, static_cast<int32_t>(std::min<int64_t>(flags_.warmups, flags_.channels))});
    options.num_requests = flags_.warmups;
    options.duration = 0;
    options.sample_queue = false;
    options.run = kWarmUpRun;
    generator_.Run(source_, options, nullptr);
  }

  /// Measures `load`, with at most `most` requests if that is not 0, into `report`.
  const bench::RunResult& Measure(const bench::OfferedLoad& load, const std::string& place,
                                  bench::BenchReport* report, int64_t most = 0) {
    bench::LoadOptions options = Options(load);
    if (most > 0) options.num_requests = most;
    options.run = report->runs.size();
    bench::Load measured;
    {
      TerminalLine line;
      measured = generator_.Run(source_, options, [&](const bench::RunProgress& p) {
        if (isatty(STDERR_FILENO) == 0) return;
        line.Draw(fmt::format("{} {}: {:.0f} s, {} sent, {} done{}", place, bench::LoadText(load),
                              p.seconds, p.sent, p.done,
                              p.not_ok > 0 ? fmt::format(", {} not OK", p.not_ok) : ""));
      });
    }
    report->runs.push_back(
        bench::Evaluate(load, flags_.slo, measured.records, std::move(measured.queue)));
    const bench::RunResult& run = report->runs.back();
    fmt::print(stderr, "{} {}: {} of {} completed in {:.1f} s\n", place, bench::LoadText(load),
               run.completed, run.requests, run.duration);
    if (flags_.save_detailed) report->details.push_back(std::move(measured.records));
    return run;
  }

  /// The server idle and full, then rates up to somewhat more than it can do. `full`: requests that
  /// it runs at once.
  absl::Status Sweep(int32_t full, bench::BenchReport* report) {
    const int32_t total = flags_.sweep + 2;
    const auto place = [&](int32_t i) { return fmt::format("[{}/{}]", i, total); };
    const int64_t few = std::max(flags_.num_prompts / 10, kFewestIdleRequests);
    Measure({kAtOnce, 1}, place(1), report, few);
    const double capacity = Measure({kAtOnce, full}, place(2), report).request_throughput;
    if (!(capacity > 0)) {
      return Unavailable("--sweep: no request completed: {}", report->runs.back().first_error);
    }
    for (int32_t i = 1; i <= flags_.sweep; ++i) {
      // Of two digits: to be read, and to be run again.
      const double rate = capacity * kSweepOverload * i / flags_.sweep;
      const double unit = std::pow(10.0, std::floor(std::log10(rate)) - 1);
      Measure({std::round(rate / unit) * unit, 0}, place(i + 2), report);
    }
    return absl::OkStatus();
  }

 private:
  bench::LoadOptions Options(const bench::OfferedLoad& load) const {
    bench::LoadOptions options;
    options.load = load;
    options.burstiness = flags_.burstiness;
    options.num_requests = flags_.num_prompts;
    options.duration = flags_.duration;
    options.timeout = flags_.timeout;
    options.retries = flags_.retries;
    options.seed = flags_.seed;
    return options;
  }

  const BenchServeFlags& flags_;
  const bench::RequestSource& source_;
  bench::LoadGenerator generator_;
};

absl::Status RunBenchServe(BenchServeFlags& f) {
  RETURN_IF_ERROR(ResolveChannel(&f.channel));
  if (!f.json.empty()) RETURN_IF_ERROR(CheckOutputFile("--json", f.json));
  if (!f.html.empty()) RETURN_IF_ERROR(CheckOutputFile("--html", f.html));
  Client client(f.channel.options);
  ASSIGN_OR_RETURN(const v1::GetModelInfoResponse model,
                   ModelInfoWhenReady(client, f.ready_timeout));
  constexpr double kInfoSeconds = 10.0;
  // Administrators', on many servers: without it the report lacks the device and the queue.
  v1::GetServerInfoResponse server;
  if (auto info = client.GetServerInfo(kInfoSeconds); info.ok()) {
    server = *std::move(info);
  } else if (!absl::IsPermissionDenied(info.status()) && !absl::IsUnimplemented(info.status())) {
    return info.status();
  }

  bench::RequestOptions requests = f.requests;
  requests.prefix_tokens = f.prefix_len;
  requests.prefix_share = f.prefix_share;
  requests.ignore_eos = f.ignore_eos;
  requests.temperature = f.temperature;
  requests.seed = f.seed;
  if (!f.text.empty()) {
    ASSIGN_OR_RETURN(requests.text_tokens, TextTokens(client, f.text));
  }
  ASSIGN_OR_RETURN(const bench::RequestSource source,
                   bench::RequestSource::Create(std::move(requests), model.vocab_size(),
                                                model.context_length()));

  bench::BenchReport report;
  report.version = kVersion;
  report.date = UtcDate();
  report.target = f.channel.options.target;
  // What a server says goes to a terminal.
  report.model = OneLine(model.name());
  report.architecture = OneLine(model.architecture());
  report.profile = OneLine(model.quantization().profile());
  report.backend = OneLine(model.backend());
  report.device = OneLine(server.device());
  report.server_version = OneLine(server.version());
  report.context_length = model.context_length();
  report.settings = Settings(f);
  report.slo = f.slo;

  ServeBench bench(f, source);
  bench.WarmUp();
  if (f.sweep > 0) {
    RETURN_IF_ERROR(bench.Sweep(std::max(server.limits().max_num_seqs(), 1), &report));
  } else {
    const std::vector<bench::OfferedLoad> loads = OfferedLoads(f);
    for (size_t i = 0; i < loads.size(); ++i) {
      bench.Measure(loads[i], fmt::format("[{}/{}]", i + 1, loads.size()), &report);
    }
  }
  int64_t completed = 0;
  for (bench::RunResult& run : report.runs) {
    completed += run.completed;
    run.first_error = OneLine(run.first_error);
  }
  if (!f.json.empty()) RETURN_IF_ERROR(WriteOutputFile("--json", f.json, ToJson(report)));
  if (!f.html.empty()) RETURN_IF_ERROR(WriteOutputFile("--html", f.html, RenderHtml(report)));
  fmt::print("{}", RenderText(report));
  if (completed > 0) return absl::OkStatus();
  return Unavailable("{}: no request completed: {}", report.target, report.runs.back().first_error);
}

}  // namespace

void AddBenchServe(CLI::App& bench_app, Run* run) {
  auto flags = std::make_shared<BenchServeFlags>();
  BenchServeFlags& f = *flags;
  CLI::App* cmd = bench_app.add_subcommand(
      "serve", "Load a server with requests of random tokens; latencies, throughput, goodput");
  AddChannelFlags(*cmd, f.channel)->required();
  CLI::Option* rate =
      cmd->add_option("--request-rate", f.rates,
                      "Requests a second; several, with commas between: a run each. Default: inf, "
                      "as fast as --max-concurrency allows, or all at once")
          ->delimiter(',');
  CLI::Option* limit =
      cmd->add_option("--max-concurrency", f.concurrencies,
                      "Requests at once: a closed loop without a rate, else a limit; or several")
          ->delimiter(',')
          ->check(CLI::Range(1, 100000));
  cmd->add_option("--sweep", f.sweep,
                  "The server idle, then full, then at so many rates up to 1.25 of what it did")
      ->check(CLI::Range(1, 50))
      ->excludes(rate)
      ->excludes(limit);
  CLI::Option* burstiness =
      cmd->add_option("--burstiness", f.burstiness,
                      "Of the arrivals: 1 is a Poisson process, less comes in bursts")
          ->check(CLI::Range(0.001, 1e6))
          ->capture_default_str();
  cmd->add_option("--arrival", f.arrival, "poisson, or constant: the same gap always")
      ->check(CLI::IsMember({"poisson", "constant"}))
      ->capture_default_str()
      ->excludes(burstiness);
  cmd->add_option("--num-prompts", f.num_prompts,
                  "Requests of a run; default: 100, or --duration's")
      ->check(CLI::Range(int64_t{1}, int64_t{10'000'000}));
  cmd->add_option("--duration", f.duration, "Seconds of a run in which requests come")
      ->check(CLI::Range(0.01, 1e6));
  cmd->add_option("--random-input-len", f.input_len,
                  "Tokens of a prompt: N, MIN:MAX, normal:MEAN:STD or lognormal:MEAN:STD")
      ->capture_default_str();
  cmd->add_option("--random-output-len", f.output_len, "Tokens of an output, the same")
      ->capture_default_str();
  cmd->add_option("--random-prefix-len,--shared-prefix", f.prefix_len,
                  "Tokens before the prompt that requests share")
      ->check(CLI::Range(0, 10'000'000))
      ->capture_default_str();
  cmd->add_option("--prefix-share", f.prefix_share, "Share of the requests that have the prefix")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  cmd->add_option("--text", f.text, "A file that prompts are slices of, instead of random tokens");
  cmd->add_flag("--ignore-eos,!--no-ignore-eos", f.ignore_eos,
                "Outputs have their whole length; the default");
  cmd->add_option("--temperature", f.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  cmd->add_option("--seed", f.seed, "For the same requests again")->capture_default_str();
  cmd->add_option("--num-warmups,--warmup", f.warmups, "Requests before the first run, not counted")
      ->check(CLI::Range(int64_t{0}, int64_t{1'000'000}))
      ->capture_default_str();
  cmd->add_option("--timeout", f.timeout,
                  "Deadline of a request, in seconds from its arrival; default: none")
      ->check(CLI::Range(0.001, 1e6));
  cmd->add_option("--ready-check-timeout-sec", f.ready_timeout,
                  "Seconds to wait until the server is ready")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  cmd->add_option("--retries", f.retries,
                  "Times that a request is sent again which was refused, or lost its server")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  cmd->add_option("--channels", f.channels, "Connections, which requests take in turn")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  cmd->add_option("--goodput,--slo", f.goodput,
                  "What makes a request good, in ms: ttft:200,itl:50,tpot:50,e2el:5000");
  cmd->add_option("--json", f.json, "File to write the figures to");
  cmd->add_option("--html", f.html, "File to write a page with plots to");
  cmd->add_flag("--save-detailed", f.save_detailed, "Every request in --json");
  cmd->callback([flags, run] {
    CheckBenchServe(*flags);
    *run = [flags] { return RunBenchServe(*flags); };
  });
}

}  // namespace quantd

// quantd eval: what every profile costs and loses on a text, as a table, JSON, or a page to read.
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "engine/eval/eval_json.h"
#include "engine/eval/report_html.h"
#include "engine/plan/bytes_text.h"
#include "kernels/status.h"
#include "server/cli/backend_flags.h"
#include "server/cli/commands.h"
#include "server/cli/output_file.h"
#include "server/evaluate_profiles.h"
#include "server/one_line.h"
#include "server/read_input.h"
#include "server/terminal_line.h"

namespace quantd {
namespace {

struct EvalFlags {
  EvaluateOptions evaluate;
  std::string from;
  std::vector<std::string> reports;
  bool json = false;
};

// One line that rewrites itself on a terminal; a line a profile elsewhere.
class ProgressLine {
 public:
  void operator()(const EvaluateProgress& p) {
    const auto now = std::chrono::steady_clock::now();
    const bool last = p.window == p.num_windows || (terminal_ && p.window == 0);
    if (terminal_ ? !last && now - shown_ < std::chrono::milliseconds(200) : !last) return;
    shown_ = now;
    const std::string doing = p.window == 0
                                  ? "loading; errors of modules, greedy texts"
                                  : fmt::format("window {} of {}", p.window, p.num_windows);
    const std::string left =
        p.seconds_left > 0 ? fmt::format(", {:.0f} s left", p.seconds_left) : "";
    const std::string text = fmt::format("[{}/{}] {}: {}{}", p.profile_index + 1, p.num_profiles,
                                         p.profile, doing, left);
    terminal_ ? line_.Draw(text) : fmt::print(stderr, "{}\n", text);
  }

 private:
  const bool terminal_ = ::isatty(STDERR_FILENO) == 1;
  TerminalLine line_;
  std::chrono::steady_clock::time_point shown_;
};

void PrintTable(const EvalReport& report) {
  // A report that is shown may be a stranger's.
  fmt::print("{}: {} tokens of {} in windows of {}, on {}\n", OneLine(report.model), report.tokens,
             OneLine(report.text), report.context, OneLine(report.device));
  if (!report.reference.empty()) fmt::print("compared with {}\n", OneLine(report.reference));
  fmt::print("\n{:<20} {:>10} {:>11} {:>9} {:>16} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8}\n", "profile",
             "memory", "perplexity", "kept", "95%", "KL mean", "KL 99%", "top-1", "top-5",
             "prefill", "decode");
  for (const ProfileResult& p : report.profiles) {
    if (!p.refusal.empty()) {
      fmt::print("{:<20} not measured: {}\n", OneLine(p.facts.name), OneLine(p.refusal));
      continue;
    }
    const auto share = [&](double v) { return p.compared ? fmt::format("{:.2f}%", 100 * v) : "-"; };
    const auto nats = [&](double v) { return p.compared ? fmt::format("{:.5f}", v) : "-"; };
    const Interval& r = p.retention;
    fmt::print("{:<20} {:>10} {:>11.4f} {:>9} {:>16} {:>9} {:>9} {:>7} {:>7} {:>8.0f} {:>8.1f}\n",
               OneLine(p.facts.name), BytesText(p.facts.resident_bytes), p.perplexity,
               share(r.value),
               r.low ? fmt::format("{:.2f}-{:.2f}%", 100 * *r.low, 100 * *r.high) : "-",
               nats(p.kl_mean), nats(p.kl_p99), share(p.top1), share(p.top5),
               p.prefill_tokens_per_second, p.facts.decode_tokens_per_second);
  }
}

// What would go wrong after hours of measuring.
absl::Status CheckReportPath(const std::string& path) {
  if (!path.ends_with(".html") && !path.ends_with(".json")) {
    return InvalidArgument("--report {}: must end in .html or .json", path);
  }
  return CheckOutputFile("--report", path);
}

absl::StatusOr<EvalReport> MakeReport(const EvalFlags& flags) {
  if (!flags.from.empty()) {
    ASSIGN_OR_RETURN(const std::string json, ReadInput(flags.from, "--from " + flags.from));
    return EvalReportFromJson(json, flags.from);
  }
  ProgressLine progress;
  ASSIGN_OR_RETURN(
      const EvalReport report,
      EvaluateProfiles(flags.evaluate, [&](const EvaluateProgress& state) { progress(state); }));
  // With the digits of its JSON, so that both show the same.
  return EvalReportFromJson(ToJson(report), "the report");
}

absl::Status RunEval(const EvalFlags& flags) {
  for (const std::string& path : flags.reports) RETURN_IF_ERROR(CheckReportPath(path));
  ASSIGN_OR_RETURN(const EvalReport report, MakeReport(flags));
  for (const std::string& path : flags.reports) {
    RETURN_IF_ERROR(WriteOutputFile(
        "--report", path, path.ends_with(".html") ? RenderReport(report) : ToJson(report)));
  }
  if (flags.json) {
    fmt::print("{}", ToJson(report));
  } else {
    PrintTable(report);
  }
  std::vector<std::string> refused;
  for (const ProfileResult& p : report.profiles) {
    if (!p.refusal.empty()) refused.push_back(fmt::format("{}: {}", p.facts.name, p.refusal));
  }
  if (refused.empty()) return absl::OkStatus();
  return FailedPrecondition("{} of {} profiles could not be measured: {}", refused.size(),
                            report.profiles.size(), fmt::join(refused, "; "));
}

}  // namespace

void AddEval(CLI::App& app, Run* run) {
  auto flags = std::make_shared<EvalFlags>();
  EvaluateOptions& e = flags->evaluate;
  e.text = "demo/validation.txt";
  CLI::App* cmd = app.add_subcommand(
      "eval", "Measure on a text what profiles cost and lose, beside the model in 16 bits");
  CLI::Option* model = cmd->add_option("model,--model", e.model, "Folder of the model");
  cmd->add_option("--profiles", e.profiles,
                  "Names or files, with commas between. Without it: all built-in ones, or a "
                  "quantized checkpoint as it is")
      ->delimiter(',');
  cmd->add_option("--text", e.text, "To measure on: a text file, or .jsonl with a \"text\" a line")
      ->capture_default_str();
  cmd->add_option("--reference", e.reference,
                  "Profile to compare with, or none; empty: 16 bits, of a full-precision folder");
  cmd->add_option("--reference-model", e.reference_model,
                  "Folder of the full-precision original of a quantized checkpoint");
  cmd->add_option("--reference-backend", e.reference_backend,
                  "Where the reference runs, if it does not fit beside: cpu, say");
  cmd->add_option("--context", e.context, "Tokens of a window; 0: the model's, at most 2048")
      ->check(CLI::NonNegativeNumber);
  cmd->add_option("--stride", e.stride,
                  "Tokens from one window to the next; 0: as many as a window has")
      ->check(CLI::NonNegativeNumber);
  cmd->add_option("--max-tokens", e.max_tokens, "Of the text, that are scored; 0: all")
      ->check(CLI::NonNegativeNumber);
  cmd->add_option("--resume", e.journal,
                  "File that keeps what is measured: a run that was stopped goes on with it");
  cmd->add_option("--report", flags->reports, "File to write, .html or .json; may be repeated");
  CLI::Option* from =
      cmd->add_option("--from", flags->from, "A report's .json to show instead of measuring");
  cmd->add_flag("--json", flags->json, "JSON instead of a table");
  AddBackendFlags(*cmd, e.backend);
  for (CLI::Option* option : cmd->get_options()) {  // those of measuring
    const std::string name = option->get_name();
    if (name != "--help" && name != "--from" && name != "--report" && name != "--json") {
      from->excludes(option);
    }
  }
  cmd->callback([flags, model, run] {
    if (flags->from.empty() && model->empty()) {
      throw CLI::RequiredError("--model");
    }
    *run = [flags] { return RunEval(*flags); };
  });
}

}  // namespace quantd

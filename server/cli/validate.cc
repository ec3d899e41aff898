// quantd validate: every fault of a configuration, profile, model and device at once, as a list or
// JSON.
#include "server/validate.h"
#include "engine/weights/json_dump.h"

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "server/cli/backend_flags.h"
#include "server/cli/commands.h"
#include "server/one_line.h"
#include "server/sizes.h"

namespace quantd {
namespace {

struct ValidateFlags {
  std::string config;
  // Given, they stand for a --set, as of `serve`.
  std::optional<std::string> model;
  std::optional<std::string> profile;
  std::optional<std::string> backend;
  std::string memory;
  std::vector<std::string> overrides;
  bool json = false;
};

nlohmann::json ToJson(const std::vector<Finding>& findings, bool ok) {
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& f : findings) {
    list.push_back({{"severity", f.severity == Finding::Severity::kError ? "error" : "warning"},
                    {"where", f.where},
                    {"what", f.what},
                    {"fix", f.fix}});
  }
  return {{"ok", ok}, {"findings", std::move(list)}};
}

std::string Count(int64_t count, const char* what) {
  return fmt::format("{} {}{}", count, what, count == 1 ? "" : "s");
}

void Print(const std::vector<Finding>& findings, Finding::Severity severity, const char* title) {
  bool first = true;
  for (const Finding& f : findings) {
    if (f.severity != severity) continue;
    if (first) fmt::print("{}\n", title);
    first = false;
    fmt::print("  {}: {}\n", OneLine(f.where), OneLine(f.what));
    if (!f.fix.empty()) fmt::print("      fix: {}\n", OneLine(f.fix));
  }
}

absl::Status RunValidate(const ValidateFlags& flags) {
  ValidateOptions options;
  options.config = flags.config;
  const auto add = [&](const char* key, const std::optional<std::string>& value) {
    if (value.has_value()) options.overrides.push_back(std::string(key) + "=" + *value);
  };
  add("model", flags.model);
  add("profile", flags.profile);
  add("backend", flags.backend);
  options.overrides.insert(options.overrides.end(), flags.overrides.begin(), flags.overrides.end());
  if (!flags.memory.empty()) options.memory_bytes = *ParseBytes(flags.memory);

  const std::vector<Finding> findings = Validate(options);
  const int64_t errors = std::count_if(findings.begin(), findings.end(), [](const Finding& f) {
    return f.severity == Finding::Severity::kError;
  });
  if (flags.json) {
    fmt::print("{}\n", DumpJson(ToJson(findings, errors == 0), 2));
  } else {
    Print(findings, Finding::Severity::kError, "errors");
    Print(findings, Finding::Severity::kWarning, "warnings");
    fmt::print("{}, {}\n", Count(errors, "error"),
               Count(static_cast<int64_t>(findings.size()) - errors, "warning"));
  }
  if (errors == 0) return absl::OkStatus();
  return FailedPrecondition("validate: {}", Count(errors, "error"));
}

}  // namespace

void AddValidate(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ValidateFlags>();
  CLI::App* cmd = app.add_subcommand(
      "validate",
      "Say everything that is wrong with a configuration, profile and model, before "
      "loading; exit code 1 for errors, 0 for warnings or none");
  // One of the two says what model it is about.
  CLI::Option_group* what = cmd->add_option_group("what to validate");
  what->add_option("--config", flags->config, "YAML file of `serve`");
  what->add_option("model,--model", flags->model, "Folder of the model");
  what->require_option(1, 2);
  cmd->add_option("--profile", flags->profile, "Quantization: a profile's name or a YAML file");
  cmd->add_option("--backend", flags->backend, kBackendHelp);
  cmd->add_option("--memory", flags->memory,
                  "Of the device, like 16GB or 24GiB: a GPU's, which need not be here, unless "
                  "--backend is cpu or ref. Without it: what this machine has free")
      ->check(CLI::Validator(
          [](const std::string& text) {
            const auto bytes = ParseBytes(text);
            return bytes && *bytes > 0 ? std::string()
                                       : fmt::format("\"{}\": not a size like 16GB, 24GiB", text);
          },
          "SIZE"));
  cmd->add_option("--set", flags->overrides, "key=value, for any key of the configuration")
      ->take_all()
      ->allow_extra_args(false);
  cmd->add_flag("--json", flags->json, "JSON instead of a list");
  cmd->callback([flags, run] { *run = [flags] { return RunValidate(*flags); }; });
}

}  // namespace quantd

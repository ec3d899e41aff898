// quantd keys: makes API keys, and says what a file of them has.
#include <cstdio>
#include <memory>
#include <string>

#include "kernels/status.h"
#include "server/cli/commands.h"
#include "server/security/api_keys.h"

namespace quantd {
namespace {

absl::Status RunNewKey(const std::string& name) {
  ASSIGN_OR_RETURN(const NewApiKey made, MakeApiKey(name));
  // Apart, so that `quantd keys new NAME >> keys.yaml` does not write the key itself down.
  fmt::print(stderr, "the key of {}, which is not kept anywhere:\n{}\n", name, made.key);
  fmt::print("{}", made.entry);
  return absl::OkStatus();
}

absl::Status RunListKeys(const std::string& path) {
  ASSIGN_OR_RETURN(const std::vector<ApiKey> keys, ReadApiKeys(path));
  fmt::print("{:<24} {:>10} {:>13} {:>7} {:>12}  {:<5} {}\n", "name", "at once", "tokens/min",
             "weight", "min_priority", "admin", "models");
  const auto limit = [](int64_t n) { return n == 0 ? std::string("-") : std::to_string(n); };
  for (const ApiKey& key : keys) {
    fmt::print("{:<24} {:>10} {:>13} {:>7} {:>12}  {:<5} {}\n", key.name,
               limit(key.max_concurrent_requests), limit(key.tokens_per_minute), key.weight,
               key.min_priority, key.admin ? "yes" : "no",
               key.models.empty() ? "all" : fmt::format("{}", fmt::join(key.models, ", ")));
  }
  return absl::OkStatus();
}

}  // namespace

void AddKeys(CLI::App& app, Run* run) {
  CLI::App* cmd = app.add_subcommand("keys", "Make API keys, or list those of a file");
  cmd->require_subcommand(1);
  auto name = std::make_shared<std::string>();
  CLI::App* make = cmd->add_subcommand(
      "new", "Print a new key on stderr, and its entry for the file of keys on stdout");
  make->add_option("name", *name, "Whose it is: in logs and metrics")->required();
  make->callback([name, run] { *run = [name] { return RunNewKey(*name); }; });
  auto path = std::make_shared<std::string>();
  CLI::App* list = cmd->add_subcommand("list", "Check a file of keys and print what each may");
  list->add_option("file", *path, "security.api_keys of the server's configuration")->required();
  list->callback([path, run] { *run = [path] { return RunListKeys(*path); }; });
}

}  // namespace quantd

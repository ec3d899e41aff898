// quantd serve
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "server/cli/backend_flags.h"
#include "server/cli/commands.h"
#include "server/config.h"
#include "server/log.h"
#include "server/serve.h"

namespace quantd {
namespace {

struct ServeFlags {
  std::string config;
  // Given, they stand for a --set; an empty one, too, has a meaning.
  std::optional<std::string> model;
  std::optional<std::string> profile;
  std::optional<std::string> backend;
  std::optional<std::string> determinism;
  std::optional<std::string> threads;
  std::optional<std::string> listen;
  std::optional<std::string> http;
  std::vector<std::string> overrides;
};

absl::Status RunServe(const ServeFlags& flags) {
  std::vector<std::string> overrides;
  const auto add = [&](const char* key, const std::optional<std::string>& value) {
    if (value.has_value()) overrides.push_back(std::string(key) + "=" + *value);
  };
  add("model", flags.model);
  add("profile", flags.profile);
  add("backend", flags.backend);
  add("determinism", flags.determinism);
  add("threads", flags.threads);
  add("listen.grpc", flags.listen);
  add("listen.http", flags.http);
  overrides.insert(overrides.end(), flags.overrides.begin(), flags.overrides.end());
  const absl::StatusOr<ServerConfig> loaded = LoadServerConfig(flags.config, overrides);
  if (!loaded.ok()) {  // said in the format that was meant
    if (MeansJsonLog(flags.config, overrides)) ConfigureLog("info", true);
    return loaded.status();
  }
  const ServerConfig& config = *loaded;
  ConfigureLog(config.log.level, config.log.format == "json");
  return Serve(config);
}

}  // namespace

void AddServe(CLI::App& app, Run* run) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* cmd = app.add_subcommand("serve", "Serve a model over gRPC until SIGTERM");
  cmd->add_option("--config", flags->config, "YAML file; configs/server.yaml documents every key");
  cmd->add_option("--model", flags->model, "Folder of the model");
  cmd->add_option("--profile", flags->profile, "Quantization: a profile's name or a YAML file");
  cmd->add_option("--backend", flags->backend, kBackendHelp);
  cmd->add_option("--determinism", flags->determinism, kDeterminismHelp);
  cmd->add_option("--threads", flags->threads, "Threads of the cpu backend; 0: as many as allowed");
  cmd->add_option("--listen", flags->listen, "host:port of gRPC; port 0 takes a free one");
  cmd->add_option("--http", flags->http,
                  "host:port of /livez, /readyz and /metrics; \"\" for none");
  cmd->add_option("--set", flags->overrides, "key=value, for any key of the configuration")
      ->take_all()
      ->allow_extra_args(false);
  cmd->callback([flags, run] { *run = [flags] { return RunServe(*flags); }; });
}

}  // namespace quantd

// ServerConfig from YAML: one table of keys serves parsing, overriding, validating and printing.
#include "server/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <limits>
#include <set>
#include <string_view>
#include <utility>
#include <variant>

#include "engine/weights/nearest.h"
#include "kernels/fault_list.h"
#include "kernels/status.h"
#include "server/one_line.h"
#include "server/read_input.h"
#include "server/sizes.h"

namespace quantd {
namespace {

constexpr double kForever = 1e9;  // seconds; about thirty years, far from overflowing a clock
constexpr int64_t kMaxInt = std::numeric_limits<int32_t>::max();

// A key: where its value lives and what is allowed there.
struct Key {
  std::string path;
  std::variant<std::string*, int64_t*, double*, bool*> value;
  double min = 0;
  double max = 0;
  bool is_size = false;                   // takes KiB, MiB, GiB
  std::vector<std::string> choices = {};  // of a string
};

std::vector<Key> KeysOf(ServerConfig& c) {
  return {
      {"model", &c.model},
      {"served_model_name", &c.served_model_name},
      {"profile", &c.profile},
      {.path = "backend",
       .value = &c.backend,
       .choices = {"auto", "cuda", "cpu", "ref", "cuda-emulated"}},
      {.path = "determinism", .value = &c.determinism, .choices = {"default", "batch_invariant"}},
      {"threads", &c.threads, 0, 1024},
      {"listen.grpc", &c.listen.grpc},
      {"listen.http", &c.listen.http},
      {"listen.reflection", &c.listen.reflection},
      {"listen.admin", &c.listen.admin},
      {"tls.certificate", &c.tls.certificate},
      {"tls.key", &c.tls.key},
      {"tls.client_ca", &c.tls.client_ca},
      {"tls.reload_seconds", &c.tls.reload_seconds, 1, 86400},
      {"security.api_keys", &c.security.api_keys},
      {"security.reload_seconds", &c.security.reload_seconds, 0.1, 86400},
      {"limits.max_message_bytes", &c.limits.max_message_bytes, 1024, 1 << 30, true},
      {"limits.max_metadata_bytes", &c.limits.max_metadata_bytes, 1024, 1 << 20, true},
      {"limits.max_concurrent_streams", &c.limits.max_concurrent_streams, 1, 1 << 20},
      {"limits.memory_quota_bytes", &c.limits.memory_quota_bytes, 1 << 20, 1LL << 40, true},
      {"limits.max_queued_requests", &c.limits.max_queued_requests, 1, 1 << 20},
      {"limits.max_queued_tokens", &c.limits.max_queued_tokens, 0, static_cast<double>(1LL << 40)},
      {"limits.tokenizer_threads", &c.limits.tokenizer_threads, 1, 64},
      {"limits.max_queued_tokenizations", &c.limits.max_queued_tokenizations, 1, 1 << 20},
      {"limits.stream_backlog_tokens", &c.limits.stream_backlog_tokens, 1, 1 << 20},
      {"limits.retry_pushback_ms", &c.limits.retry_pushback_ms, 0, 3600000},
      {"kv.block_size", &c.kv.block_size, 1, 1024},
      {"kv.cache_bytes", &c.kv.cache_bytes, 0, static_cast<double>(1LL << 50), true},
      {"kv.num_blocks", &c.kv.num_blocks, 0, static_cast<double>(kMaxInt)},
      {"kv.prefix_caching", &c.kv.prefix_caching},
      {"scheduler.max_num_seqs", &c.scheduler.max_num_seqs, 1, 65536},
      {"scheduler.max_num_batched_tokens", &c.scheduler.max_num_batched_tokens, 1, 1 << 20},
      {"scheduler.max_model_len", &c.scheduler.max_model_len, 0, static_cast<double>(kMaxInt)},
      {"scheduler.prompt_lookup_num_tokens", &c.scheduler.prompt_lookup_num_tokens, 0,
       kMaxDraftTokens},
      {.path = "scheduler.pipeline_depth",
       .value = &c.scheduler.pipeline_depth,
       .choices = {"auto", "0", "1"}},
      {"timeouts.stall_seconds", &c.timeouts.stall_seconds, 0.05, kForever},
      {"timeouts.max_request_seconds", &c.timeouts.max_request_seconds, 0, kForever},
      {"timeouts.drain_seconds", &c.timeouts.drain_seconds, 0, kForever},
      {"timeouts.pre_drain_seconds", &c.timeouts.pre_drain_seconds, 0, kForever},
      {"timeouts.keepalive_seconds", &c.timeouts.keepalive_seconds, 1, 2e6},
      {"timeouts.max_connection_age_seconds", &c.timeouts.max_connection_age_seconds, 0, 2e6},
      {"timeouts.min_ping_interval_seconds", &c.timeouts.min_ping_interval_seconds, 0, 2e6},
      {.path = "log.level",
       .value = &c.log.level,
       .choices = {"debug", "info", "warn", "error", "off"}},
      {.path = "log.format", .value = &c.log.format, .choices = {"text", "json"}},
      {"log.requests", &c.log.requests},
      {"log.prompts", &c.log.prompts},
      {"metrics.vllm_aliases", &c.metrics.vllm_aliases},
  };
}

// "limits" and "max_queued_tokens" of "limits.max_queued_tokens"; a key at the top has no section.
std::pair<std::string_view, std::string_view> SplitPath(std::string_view path) {
  const size_t dot = path.find('.');
  if (dot == std::string_view::npos) return {{}, path};
  return {path.substr(0, dot), path.substr(dot + 1)};
}

// What `path` may have meant: a key (at the top, a section, too) spelled nearly so in its section;
// the key of that name in another one; or a path spelled nearly so. Empty where nothing is near.
std::string NearestKey(std::string_view path, const std::vector<Key>& keys) {
  const auto [section, name] = SplitPath(path);
  std::vector<std::string_view> neighbours, paths;
  std::string namesake;
  for (const Key& key : keys) {
    const auto [known_section, known_name] = SplitPath(key.path);
    paths.emplace_back(key.path);
    if (known_section == section) neighbours.push_back(known_name);
    if (section.empty() && !known_section.empty()) neighbours.push_back(known_section);
    if (known_name == name) namesake = key.path;
  }
  if (const std::string_view near = NearName(name, neighbours); !near.empty()) {
    return section.empty() ? std::string(near) : fmt::format("{}.{}", section, near);
  }
  return namesake.empty() ? std::string(NearName(path, paths)) : namesake;
}

std::string UnknownKey(const std::string& path, const std::vector<Key>& keys) {
  const std::string nearest = NearestKey(path, keys);
  if (nearest.empty()) return fmt::format("unknown key {}", path);
  return fmt::format("unknown key {}; the nearest known key is {}", path, nearest);
}

template <typename T>
bool ParseNumber(std::string_view text, T* out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), *out);
  return error == std::errc() && end == text.data() + text.size() && !text.empty();
}

std::string Allowed(const Key& key) {
  if (!key.choices.empty()) return fmt::format("{}", fmt::join(key.choices, ", "));
  if (std::holds_alternative<bool*>(key.value)) return "true, false";
  if (std::holds_alternative<std::string*>(key.value)) return "a string";
  return fmt::format("{} in [{}, {}]{}",
                     std::holds_alternative<double*>(key.value) ? "a number" : "an integer",
                     key.min, key.max, key.is_size ? ", or with KiB, MiB, GiB" : "");
}

// Writes `text` to the key's value where that is allowed, else leaves it and says so.
void SetValue(const Key& key, const std::string& text, FaultList& faults) {
  const bool ok = std::visit(
      [&](auto* out) {
        using T = std::remove_pointer_t<decltype(out)>;
        T value{};
        if constexpr (std::is_same_v<T, std::string>) {
          value = text;
          if (!key.choices.empty() &&
              std::find(key.choices.begin(), key.choices.end(), text) == key.choices.end()) {
            return false;
          }
        } else if constexpr (std::is_same_v<T, bool>) {
          value = text == "true";
          if (text != "true" && text != "false") return false;
        } else {
          if constexpr (std::is_same_v<T, int64_t>) {
            const auto bytes = key.is_size ? ParseBytes(text) : std::nullopt;
            if (bytes) value = *bytes;
            if (key.is_size ? !bytes : !ParseNumber(text, &value)) return false;
          } else {
            if (!ParseNumber(text, &value) || !std::isfinite(value)) return false;
          }
          if (static_cast<double>(value) < key.min || static_cast<double>(value) > key.max) {
            return false;
          }
        }
        *out = std::move(value);
        return true;
      },
      key.value);
  if (!ok) faults.Add("{}: \"{}\" is not allowed, allowed: {}", key.path, text, Allowed(key));
}

const Key* FindKey(const std::vector<Key>& keys, const std::string& path) {
  const auto it =
      std::find_if(keys.begin(), keys.end(), [&](const Key& k) { return k.path == path; });
  return it == keys.end() ? nullptr : &*it;
}

bool IsSection(const std::vector<Key>& keys, const std::string& path) {
  return std::any_of(keys.begin(), keys.end(),
                     [&](const Key& k) { return k.path.starts_with(path + "."); });
}

// Walks a mapping; `prefix` is "" or "section.".
void ReadMapping(const YAML::Node& node, const std::string& prefix, const std::vector<Key>& keys,
                 FaultList& faults) {
  std::set<std::string> seen;
  for (const auto& entry : node) {
    if (!entry.first.IsScalar()) {
      faults.Add("a key that is not a name");
      continue;
    }
    const std::string path = prefix + entry.first.Scalar();
    if (!seen.insert(path).second) {
      faults.Add("{} is given twice", path);
      continue;
    }
    const Key* key = FindKey(keys, path);
    if (key == nullptr && prefix.empty() && IsSection(keys, path)) {
      if (entry.second.IsMap()) {
        ReadMapping(entry.second, path + ".", keys, faults);
      } else if (!entry.second.IsNull()) {
        faults.Add("{} must be a mapping", path);
      }
    } else if (key == nullptr) {
      faults.Add("{}", UnknownKey(path, keys));
    } else if (entry.second.IsScalar()) {
      SetValue(*key, entry.second.Scalar(), faults);
    } else if (!entry.second.IsNull()) {  // "profile:" with nothing after it keeps the default
      faults.Add("{} must be one value, allowed: {}", path, Allowed(*key));
    }
  }
}

// False where the text is no mapping, so that nothing is known of what it was to say.
bool ReadYaml(const std::string& yaml, const std::vector<Key>& keys, FaultList& faults) {
  try {
    const YAML::Node root = YAML::Load(yaml);
    if (root.IsMap()) {
      ReadMapping(root, "", keys, faults);
    } else if (!root.IsNull()) {
      faults.Add("must be a mapping of keys to values");
      return false;
    }
    return true;
  } catch (const YAML::Exception& e) {
    faults.Add("line {}: {}", e.mark.line + 1, e.msg);
    return false;
  }
}

void ReadOverride(const std::string& assignment, const std::vector<Key>& keys, FaultList& faults) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    faults.Add("{}: must be key=value", assignment);
    return;
  }
  const std::string path = assignment.substr(0, equals);
  if (const Key* key = FindKey(keys, path); key != nullptr) {
    SetValue(*key, assignment.substr(equals + 1), faults);
  } else {
    faults.Add("{}", UnknownKey(path, keys));
  }
}

void Normalize(ServerConfig* config) {
  while (config->model.size() > 1 && config->model.ends_with("/")) config->model.pop_back();
  if (config->served_model_name.empty()) config->served_model_name = config->model;
}

// What keys that are each allowed say together.
void Validate(const ServerConfig& config, FaultList& faults) {
  std::string host;
  int port = 0;
  if (config.model.empty()) faults.Add("model: empty, must name a model folder");
  if (Printable(config.served_model_name) != config.served_model_name) {  // it goes into messages
    faults.Add("served_model_name: \"{}\" is not printable UTF-8; give one that is",
               Printable(config.served_model_name));
  }
  if (const absl::Status s = ParseAddress(config.listen.grpc, &host, &port); !s.ok()) {
    faults.Add(Annotate(s, "listen.grpc"));
  }
  if (!config.listen.http.empty()) {
    if (const absl::Status s = ParseAddress(config.listen.http, &host, &port); !s.ok()) {
      faults.Add(Annotate(s, "listen.http"));
    } else if (port != 0 && config.listen.http == config.listen.grpc) {
      faults.Add("listen.http: {} is listen.grpc's address too", config.listen.http);
    }
  }
  if (!config.listen.admin.empty()) {
    if (const absl::Status s = ParseAddress(config.listen.admin, &host, &port); !s.ok()) {
      faults.Add(Annotate(s, "listen.admin"));
    } else if (port != 0 && config.listen.admin == config.listen.grpc) {
      faults.Add("listen.admin: {} is listen.grpc's address too", config.listen.admin);
    } else if (port != 0 && config.listen.admin == config.listen.http) {
      faults.Add("listen.admin: {} is listen.http's address too", config.listen.admin);
    }
  }
  if (config.tls.certificate.empty() != config.tls.key.empty()) {
    faults.Add("tls.{} is empty, tls.{} is not: give both",
               config.tls.key.empty() ? "key" : "certificate",
               config.tls.key.empty() ? "certificate" : "key");
  }
  if (!config.tls.client_ca.empty() && !config.tls.enabled()) {
    faults.Add("tls.client_ca: needs tls.certificate and tls.key");
  }
  if (config.kv.cache_bytes > 0 && config.kv.num_blocks > 0) {
    faults.Add("kv.cache_bytes and kv.num_blocks: give one of them");
  }
  if (config.scheduler.max_num_seqs > config.scheduler.max_num_batched_tokens) {
    faults.Add(
        "scheduler.max_num_batched_tokens: {} is less than scheduler.max_num_seqs, allowed: {} or "
        "more",
        config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs);
  }
}

// A scalar that YAML reads back as the same string.
std::string YamlQuoted(const std::string& text) {
  YAML::Emitter out;
  out << YAML::DoubleQuoted << text;
  return out.c_str();
}

}  // namespace

EngineOptions ServerConfig::ToEngineOptions() const {
  EngineOptions o;
  o.max_num_seqs = static_cast<int32_t>(scheduler.max_num_seqs);
  o.max_num_batched_tokens = static_cast<int32_t>(scheduler.max_num_batched_tokens);
  o.max_queued_requests = static_cast<int32_t>(limits.max_queued_requests);
  o.max_queued_tokens = limits.max_queued_tokens;
  o.block_size = static_cast<int32_t>(kv.block_size);
  o.kv_cache_bytes = kv.cache_bytes;
  o.num_kv_blocks = static_cast<int32_t>(kv.num_blocks);
  o.max_model_len = static_cast<int32_t>(scheduler.max_model_len);
  o.enable_prefix_caching = kv.prefix_caching;
  o.prompt_lookup_num_tokens = static_cast<int32_t>(scheduler.prompt_lookup_num_tokens);
  o.pipeline_depth = scheduler.pipeline_depth == "auto" ? -1 : scheduler.pipeline_depth == "1";
  return o;
}

ServerConfig ReadServerConfig(const std::string& yaml, const std::string& source,
                              const std::vector<std::string>& overrides,
                              std::vector<ConfigFault>& faults) {
  ServerConfig config;
  const std::vector<Key> keys = KeysOf(config);
  FaultList of_yaml, of_overrides, of_all;
  const bool read = ReadYaml(yaml, keys, of_yaml);
  for (const std::string& assignment : overrides) ReadOverride(assignment, keys, of_overrides);
  Normalize(&config);
  if (read) Validate(config, of_all);
  for (const std::string& text : of_yaml.texts()) faults.push_back({source, text});
  for (const std::string& text : of_overrides.texts()) faults.push_back({"--set", text});
  for (const std::string& text : of_all.texts()) faults.push_back({source, text});
  return config;
}

absl::StatusOr<ServerConfig> ParseServerConfig(const std::string& yaml, const std::string& source,
                                               const std::vector<std::string>& overrides) {
  std::vector<ConfigFault> found;
  ServerConfig config = ReadServerConfig(yaml, source, overrides, found);
  FaultList faults;
  for (const ConfigFault& fault : found) faults.Add("{}: {}", fault.where, fault.what);
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kInvalidArgument));
  return config;
}

absl::StatusOr<ServerConfig> LoadServerConfig(const std::string& path,
                                              const std::vector<std::string>& overrides) {
  if (path.empty()) return ParseServerConfig("", kNoConfigFile, overrides);
  ASSIGN_OR_RETURN(const std::string text, ReadInput(path, path));
  return ParseServerConfig(text, path, overrides);
}

bool MeansJsonLog(const std::string& path, const std::vector<std::string>& overrides) {
  std::string format;
  try {
    const YAML::Node root = YAML::Load(path.empty() ? "" : ReadInput(path, path).value_or(""));
    if (root.IsMap() && root["log"].IsMap()) format = root["log"]["format"].as<std::string>("");
  } catch (const YAML::Exception&) {  // not readable: no format is known
  }
  const std::string key = "log.format=";
  for (const std::string& given : overrides) {
    if (given.starts_with(key)) format = given.substr(key.size());
  }
  return format == "json";
}

std::string ToYaml(const ServerConfig& config) {
  ServerConfig copy = config;
  std::string out;
  std::string section;
  for (const Key& key : KeysOf(copy)) {
    const size_t dot = key.path.find('.');
    std::string name = key.path;
    if (dot != std::string::npos) {
      if (key.path.substr(0, dot) != section) {
        section = key.path.substr(0, dot);
        out += section + ":\n";
      }
      name = "  " + key.path.substr(dot + 1);
    }
    const std::string value = std::visit(
        [](auto* v) {
          if constexpr (std::is_same_v<decltype(v), std::string*>) {
            return YamlQuoted(*v);
          } else {
            return fmt::format("{}", *v);
          }
        },
        key.value);
    out += fmt::format("{}: {}\n", name, value);
  }
  return out;
}

absl::Status ParseAddress(const std::string& address, std::string* host, int* port) {
  const size_t colon = address.rfind(':');
  int number = -1;
  if (colon == std::string::npos || colon == 0 ||
      !ParseNumber(std::string_view(address).substr(colon + 1), &number) || number < 0 ||
      number > 65535) {
    return InvalidArgument("\"{}\" is not host:port with a port in [0, 65535]", address);
  }
  *host = address.substr(0, colon);
  if (host->size() > 2 && host->front() == '[' && host->back() == ']') {
    *host = host->substr(1, host->size() - 2);
  }
  *port = number;
  return absl::OkStatus();
}

}  // namespace quantd

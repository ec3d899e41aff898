// ServerConfig: everything `quantd serve` can be told, as configs/server.yaml documents it.
//
// Three steps, each a function: parse (YAML and --set overrides to fields; unknown keys are refused
// with the nearest known one), normalize (defaults that depend on other keys), validate. All faults
// of all steps come at once. One table in config.cc names every key. Values only; any thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/engine.h"
#include "server/security/tls.h"

namespace quantd {

struct ServerConfig {
  std::string model;                    // folder of the model
  std::string served_model_name;        // normalized: `model` when empty
  std::string profile;                  // name or file; empty: the checkpoint as it is
  std::string backend = "auto";         // auto | cuda | cpu | ref | cuda-emulated
  std::string determinism = "default";  // default | batch_invariant; of cuda
  int64_t threads = 0;                  // of the cpu backend; 0: what affinity and cgroup allow

  struct Listen {
    std::string grpc = "127.0.0.1:50051";
    std::string http = "127.0.0.1:8080";  // empty: no HTTP port
    bool reflection = true;
    std::string admin;  // a gRPC port for what is about the server itself; empty: `grpc` has it
  } listen;

  TlsFiles tls;

  struct Security {
    std::string api_keys;  // file (server/security/api_keys.h); empty: everybody may call
    double reload_seconds = 10;
  } security;

  struct Limits {
    int64_t max_message_bytes = 4 << 20;
    int64_t max_metadata_bytes = 16 << 10;
    int64_t max_concurrent_streams = 256;    // of one connection
    int64_t memory_quota_bytes = 256 << 20;  // gRPC's own buffers
    int64_t max_queued_requests = 256;
    int64_t max_queued_tokens = 1 << 20;
    int64_t tokenizer_threads = 2;
    int64_t max_queued_tokenizations = 64;
    int64_t stream_backlog_tokens = 256;  // beyond it a slow stream gets no more steps
    int64_t retry_pushback_ms = 500;      // at least
  } limits;

  struct Kv {
    int64_t block_size = 16;
    int64_t cache_bytes = 0;  // 0: max_num_seqs whole contexts, at most 1 GiB and what fits
    int64_t num_blocks = 0;   // instead of cache_bytes, when positive
    bool prefix_caching = true;
  } kv;

  struct Scheduler {
    int64_t max_num_seqs = 16;
    int64_t max_num_batched_tokens = 512;
    int64_t max_model_len = 0;             // 0: the model's max_position_embeddings
    int64_t prompt_lookup_num_tokens = 0;  // of requests that do not say; 0: off
    std::string pipeline_depth = "auto";   // auto | 0 | 1
  } scheduler;

  struct Timeouts {
    double stall_seconds = 30;
    double max_request_seconds = 0;  // 0: only the call's own deadline
    double drain_seconds = 30;
    double pre_drain_seconds = 0;
    double keepalive_seconds = 30;
    double max_connection_age_seconds = 0;  // 0: a connection is the client's to end
    double min_ping_interval_seconds = 10;
  } timeouts;

  struct Log {
    std::string level = "info";
    std::string format = "text";  // text | json
    bool requests = true;         // a line for each request
    bool prompts = false;         // with its text and its output
  } log;

  struct MetricsPage {
    bool vllm_aliases = false;
  } metrics;

  EngineOptions ToEngineOptions() const;
};

/// Reads `path` (empty: only defaults), then applies `overrides` ("limits.max_queued_requests=8",
/// in order), normalizes and validates. NOT_FOUND (no such file) or INVALID_ARGUMENT naming file or
/// override, key, value and what is allowed, all faults in one message.
absl::StatusOr<ServerConfig> LoadServerConfig(const std::string& path,
                                              const std::vector<std::string>& overrides);
/// Whether these ask for a log of JSON objects, as far as can be told when something else in them
/// is wrong.
bool MeansJsonLog(const std::string& path, const std::vector<std::string>& overrides);
/// The same for YAML given as text; `source` names it in messages.
absl::StatusOr<ServerConfig> ParseServerConfig(const std::string& yaml, const std::string& source,
                                               const std::vector<std::string>& overrides);
/// What is wrong in one place.
struct ConfigFault {
  std::string where;  // the source, or "--set"
  std::string what;   // "threads: \"two\" is not allowed, allowed: ..."
};
/// As ParseServerConfig, as far as it can be read: keys that are wrong keep their defaults, and
/// what is wrong with them is appended to `faults`.
ServerConfig ReadServerConfig(const std::string& yaml, const std::string& source,
                              const std::vector<std::string>& overrides,
                              std::vector<ConfigFault>& faults);
/// The source in messages where there is no file.
inline constexpr char kNoConfigFile[] = "server configuration";
/// Every key with its value, as YAML that ParseServerConfig takes.
std::string ToYaml(const ServerConfig& config);
/// Splits "host:port" ("[::1]:80" too). INVALID_ARGUMENT unless host is not empty and port is
/// 0..65535.
absl::Status ParseAddress(const std::string& address, std::string* host, int* port);

}  // namespace quantd

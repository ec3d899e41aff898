// server.yaml: what is read, what is refused and with which words.
#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing::HasSubstr;

TEST(ServerConfig, ShippedFileNamesEveryKeyWithItsDefault) {
  const std::string path = QUANTD_SOURCE_DIR "/configs/server.yaml";
  const auto shipped = LoadServerConfig(path, {});
  ASSERT_TRUE(shipped.ok()) << shipped.status();
  // Only these differ from the defaults.
  const auto defaults = LoadServerConfig("", {"model=demo/model", "profile=nf4-dq"});
  ASSERT_TRUE(defaults.ok()) << defaults.status();
  EXPECT_EQ(ToYaml(*shipped), ToYaml(*defaults));
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  std::istringstream lines(ToYaml(*defaults));
  for (std::string line; std::getline(lines, line);) {
    const std::string key = "\n" + line.substr(0, line.find(':') + 1);
    EXPECT_NE(text.str().find(key), std::string::npos) << "server.yaml lacks" << key;
  }
}

TEST(ServerConfig, ServedNameDefaultsToTheModelAsGiven) {
  EXPECT_EQ(LoadServerConfig("", {"model=demo/model/"})->served_model_name, "demo/model");
  EXPECT_EQ(LoadServerConfig("", {"model=m", "served_model_name=x"})->served_model_name, "x");
}

TEST(ServerConfig, EffectiveConfigurationReadsBackTheSame) {
  const auto config =
      LoadServerConfig("", {"model=a b: \"c\"", "limits.max_message_bytes=1MiB",
                            "timeouts.stall_seconds=0.5", "kv.prefix_caching=false"});
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->limits.max_message_bytes, 1 << 20);
  const std::string yaml = ToYaml(*config);
  const auto again = ParseServerConfig(yaml, "effective", {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ToYaml(*again), yaml);
}

TEST(ServerConfig, LaterOverrideWins) {
  const auto config = ParseServerConfig("model: m\nthreads: 3\n", "f", {"threads=4", "threads=5"});
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->threads, 5);
}

TEST(ServerConfig, EngineOptionsCarryTheKeys) {
  const auto config = LoadServerConfig(
      "", {"model=m", "kv.block_size=8", "kv.num_blocks=99", "scheduler.max_num_seqs=3",
           "scheduler.max_num_batched_tokens=77", "limits.max_queued_requests=5",
           "scheduler.pipeline_depth=1", "scheduler.max_model_len=123"});
  ASSERT_TRUE(config.ok()) << config.status();
  const EngineOptions o = config->ToEngineOptions();
  EXPECT_EQ(o.block_size, 8);
  EXPECT_EQ(o.num_kv_blocks, 99);
  EXPECT_EQ(o.max_num_seqs, 3);
  EXPECT_EQ(o.max_num_batched_tokens, 77);
  EXPECT_EQ(o.max_queued_requests, 5);
  EXPECT_EQ(o.pipeline_depth, 1);
  EXPECT_EQ(LoadServerConfig("", {"model=m"})->ToEngineOptions().pipeline_depth, -1)
      << "auto: the backend's";
  EXPECT_EQ(o.max_model_len, 123);
  EXPECT_TRUE(o.enable_prefix_caching);
}

struct Fault {
  const char* yaml;
  std::vector<std::string> overrides;
  std::vector<std::string> message;  // parts that must be in it
};

TEST(ServerConfig, FaultsNameKeyValueAndWhatIsAllowed) {
  const Fault faults[] = {
      {"modle: x", {}, {"f.yaml", "unknown key modle", "model"}},
      {"model: m\nlimits: {max_queue_requests: 3}",
       {},
       {"limits.max_queue_requests", "limits.max_queued_requests"}},
      {"model: m\nthreads: two", {}, {"threads", "\"two\"", "integer", "1024"}},
      {"model: m\nthreads: -1", {}, {"threads", "-1"}},
      {"model: m\nthreads: 2.5", {}, {"threads", "2.5"}},
      {"model: m\nthreads: 99999999999999999999", {}, {"threads"}},
      {"model: m\nbackend: gpu", {}, {"backend", "gpu", "auto, cuda, cpu, ref"}},
      {"model: m\ndeterminism: yes", {}, {"determinism", "yes", "default, batch_invariant"}},
      {"model: m\nscheduler: {pipeline_depth: 2}", {}, {"pipeline_depth", "2", "auto, 0, 1"}},
      {"model: m\nlisten: {grpc: localhost}", {}, {"listen.grpc", "localhost", "host:port"}},
      {"model: m\nlisten: {grpc: 'a:70000'}", {}, {"listen.grpc", "70000", "65535"}},
      {"model: m\nlisten: {grpc: ':80'}", {}, {"listen.grpc", ":80"}},
      {"model: m\nlisten: {grpc: 'a:80', http: 'a:80'}", {}, {"listen.http", "a:80"}},
      {"model: m\nlisten: {reflection: 1}", {}, {"listen.reflection", "true, false"}},
      {"model: m\nlimits: {max_message_bytes: 9GiB}",
       {},
       {"limits.max_message_bytes", "9GiB", "MiB"}},
      {"model: m\nlimits: {max_message_bytes: 1XiB}", {}, {"limits.max_message_bytes", "1XiB"}},
      {"model: m\ntimeouts: {stall_seconds: nan}", {}, {"timeouts.stall_seconds", "nan"}},
      {"model: m\ntimeouts: {stall_seconds: 0}", {}, {"timeouts.stall_seconds"}},
      {"model: m\nkv: {cache_bytes: 1GiB, num_blocks: 3}", {}, {"kv.cache_bytes", "kv.num_blocks"}},
      {"model: m\nscheduler: {max_num_seqs: 64, max_num_batched_tokens: 32}",
       {},
       {"max_num_batched_tokens", "32", "64"}},
      {"profile: x", {}, {"model: empty"}},
      {"model: m\nlimits: 3", {}, {"limits", "mapping"}},
      {"model: [a, b]", {}, {"model", "one value"}},
      {"model: a\nmodel: b", {}, {"model", "twice"}},
      {"- model", {}, {"mapping"}},
      {"model: [", {}, {"f.yaml", "line"}},
      {"model: m", {"threads"}, {"--set", "key=value"}},
      {"model: m", {"thread=3"}, {"--set", "thread", "threads"}},
      {"model: m", {"limits=3"}, {"--set", "limits"}},
  };
  for (const Fault& fault : faults) {
    const auto config = ParseServerConfig(fault.yaml, "f.yaml", fault.overrides);
    ASSERT_FALSE(config.ok()) << fault.yaml;
    EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
    for (const std::string& part : fault.message) {
      EXPECT_NE(Message(config.status()).find(part), std::string::npos)
          << fault.yaml << "\n"
          << Message(config.status()) << "\nlacks " << part;
    }
  }
}

TEST(ServerConfig, AllFaultsOfValidationComeAtOnce) {
  const auto config = ParseServerConfig("listen: {grpc: x, http: y}", "f", {});
  for (const char* part : {"model", "listen.grpc", "listen.http"}) {
    EXPECT_NE(Message(config.status()).find(part), std::string::npos) << config.status();
  }
}

TEST(ServerConfig, AllFaultsOfAllStepsComeAtOnce) {
  const char* yaml =
      "modle: x\nthreads: two\nlimits: {max_queue_requests: 3}\nkv: 3\n"
      "backend: [cpu]\nlisten: {grpc: x}\nbackend: ref\n";
  const auto config = ParseServerConfig(yaml, "f.yaml", {"log.level=loud", "nonsense", "x=1"});
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  for (const char* part :
       {"f.yaml: unknown key modle; the nearest known key is model", "f.yaml: threads: \"two\"",
        "unknown key limits.max_queue_requests", "kv must be a mapping",
        "backend must be one value", "backend is given twice",
        "--set: log.level: \"loud\" is not allowed", "--set: nonsense: must be key=value",
        "--set: unknown key x", "model: empty", "listen.grpc: \"x\" is not host:port"}) {
    EXPECT_NE(Message(config.status()).find(part), std::string::npos)
        << Message(config.status()) << "\nlacks " << part;
  }
}

TEST(ServerConfig, AnUnknownKeyIsToldTheNearestOneOnlyWhereItIsNear) {
  const struct {
    const char* key;
    const char* nearest;
  } cases[] = {{"modle", "model"},
               {"threds", "threads"},
               {"limit", "limits"},  // a section
               {"limits.max_queue_requests", "limits.max_queued_requests"},
               {"limit.max_queued_requests", "limits.max_queued_requests"},
               {"tls.reload_second", "tls.reload_seconds"},  // not security's
               {"security.reload_second", "security.reload_seconds"},
               {"max_num_seqs", "scheduler.max_num_seqs"},
               {"limits.block_size", "kv.block_size"},
               {"limits.bad_key", ""},
               {"listen.nonsense", ""},
               {"nonsense", ""},
               {"x", ""}};
  for (const auto& c : cases) {
    const auto config = ParseServerConfig("model: m", "f", {std::string(c.key) + "=1"});
    std::string expected = std::string("--set: unknown key ") + c.key;
    if (*c.nearest != 0) expected += std::string("; the nearest known key is ") + c.nearest;
    EXPECT_EQ(Message(config.status()), expected);
  }
}

TEST(ServerConfig, AFileThatIsNoMappingHasNoOtherFault) {
  for (const char* yaml : {"model: [", "- model", "listen: {grpc: x\nthreads: two"}) {
    std::vector<ConfigFault> faults;
    ReadServerConfig(yaml, "f.yaml", {}, faults);
    EXPECT_EQ(faults.size(), 1u) << yaml << ", such as " << faults.back().what;
    // What the command line says is read all the same.
    ReadServerConfig(yaml, "f.yaml", {"threads=two"}, faults);
    EXPECT_EQ(faults.size(), 3u);
  }
}

TEST(ServerConfig, KeysThatAreWrongKeepTheirDefaults) {
  std::vector<ConfigFault> faults;
  const ServerConfig config =
      ReadServerConfig("model: m\nthreads: two\nbackend: gpu\nkv: {block_size: 8}", "f.yaml",
                       {"kv.cache_bytes=-1", "kv.prefix_caching=maybe"}, faults);
  EXPECT_EQ(config.model, "m");
  EXPECT_EQ(config.threads, 0);
  EXPECT_EQ(config.backend, "auto");
  EXPECT_EQ(config.kv.block_size, 8);
  EXPECT_EQ(config.kv.cache_bytes, 0);
  EXPECT_TRUE(config.kv.prefix_caching);
  ASSERT_EQ(faults.size(), 4u);
  EXPECT_EQ(faults[0].where, "f.yaml");
  EXPECT_EQ(faults[3].where, "--set");
}

TEST(ServerConfig, ANameThatIsSaidAloudIsPrintable) {
  EXPECT_TRUE(LoadServerConfig("", {"model=m", "served_model_name=Modèle 7B"}).ok());
  for (const char* name : {"a\nb", "\xff", "a\u202eb", "\u009b2J"}) {
    const auto config = LoadServerConfig("", {std::string("model=") + name});
    EXPECT_THAT(std::string(config.status().message()), HasSubstr("served_model_name")) << name;
    EXPECT_TRUE(LoadServerConfig("", {std::string("model=") + name, "served_model_name=m"}).ok());
  }
}

TEST(ServerConfig, TheLogsFormatIsKnownWhereSomethingElseIsWrong) {
  testing_support::TempDir dir;
  const std::string path = (dir.path() / "server.yaml").string();
  testing_support::WriteFile(path, "log: {format: json}\nno_such_key: 1\n");
  EXPECT_TRUE(MeansJsonLog(path, {}));
  EXPECT_FALSE(MeansJsonLog(path, {"log.format=text"}));
  testing_support::WriteFile(path, "log: [}");
  EXPECT_FALSE(MeansJsonLog(path, {}));
  EXPECT_TRUE(MeansJsonLog(path, {"log.format=json", "x=1"}));
  EXPECT_FALSE(MeansJsonLog("/no/such/file", {}));
}

TEST(ServerConfig, MissingFileIsNotFound) {
  EXPECT_EQ(LoadServerConfig("/nonexistent.yaml", {}).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace quantd

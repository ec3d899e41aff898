// `quantd bench` as a process, against the real server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <thread>

#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"
#include "tests/server/process.h"

namespace quantd::test {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing_support::ReadFile;
using testing_support::TempDir;

class BenchCommand : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return (dir_.path() / name).string(); }
  // bench serve's JSON.
  json Measure(const std::string& target, std::vector<std::string> more,
               std::string* out = nullptr) {
    std::vector<std::string> arguments = {"bench", "serve",  "--target",
                                          target,  "--json", Path("r.json")};
    arguments.insert(arguments.end(), more.begin(), more.end());
    const Finished run = RunQuantd(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    if (out != nullptr) *out = run.out;
    return json::parse(ReadFile(Path("r.json")), nullptr, /*allow_exceptions=*/false);
  }
  TempDir dir_;
};

TEST_F(BenchCommand, MeasuresOpenAndClosedLoadsOfAServer) {
  Guarded guarded;
  ASSERT_TRUE(guarded.ready());
  const std::string target = guarded.server().grpc();
  std::string out;
  const json open = Measure(target,
                            {"--request-rate", "20,40", "--num-prompts", "12", "--random-input-len",
                             "4:12", "--random-output-len", "5", "--goodput",
                             "ttft:60000,e2el:60000", "--save-detailed", "--html", Path("r.html")},
                            &out);
  ASSERT_EQ(open["runs"].size(), 2u);
  for (const json& run : open["runs"]) {
    EXPECT_EQ(run["completed"], 12);
    EXPECT_TRUE(run["refused"].empty() && run["failed"].empty()) << run;
    EXPECT_EQ(run["total_output_tokens"], 12 * 5) << "of the length asked for";
    EXPECT_EQ(run["request_goodput"], run["request_throughput"]);
    double scheduled = 0;
    for (const json& r : run["requests"]) {
      EXPECT_GE(r["scheduled"], scheduled) << "in the order of arrival";
      scheduled = r["scheduled"];
      EXPECT_GE(r["sent"], r["scheduled"]);
      EXPECT_GT(r["first_token"], r["sent"]);
      EXPECT_GE(r["end"], r["first_token"]);
      EXPECT_EQ(r["output_tokens"], 5);
    }
  }
  EXPECT_THAT(ReadFile(Path("r.html")), AllOf(HasSubstr("<svg"), HasSubstr("demo/model")));
  EXPECT_THAT(out, HasSubstr("scheduled arrival"));

  const json closed =
      Measure(target, {"--max-concurrency", "2", "--duration", "0.3", "--text",
                       QUANTD_SOURCE_DIR "/demo/validation.txt", "--random-input-len", "6",
                       "--random-output-len", "4", "--random-prefix-len", "40"});
  const json& run = closed["runs"][0];
  EXPECT_GE(run["completed"], 2);
  EXPECT_EQ(run["max_concurrent_requests"], 2);
  EXPECT_GT(run["total_cached_tokens"], 0) << "the shared prefix";
  guarded.ExpectServing("a load");
}

TEST_F(BenchCommand, TellsRefusalsAndDeadlinesApart) {
  ServerProcess server(
      {"limits.max_queued_requests=1", "scheduler.max_num_seqs=1", "limits.retry_pushback_ms=20"});
  ASSERT_TRUE(server.ready()) << server.process().err();
  const json report = Measure(server.grpc(), {"--num-prompts", "12", "--random-output-len", "50"});
  const json& run = report["runs"][0];  // all at once
  EXPECT_GT(run["refused"]["RESOURCE_EXHAUSTED"], 0);
  EXPECT_EQ(run["completed"].get<int>() + run["refused"]["RESOURCE_EXHAUSTED"].get<int>(), 12);
  EXPECT_TRUE(run["failed"].empty());
  const json again = Measure(
      server.grpc(), {"--num-prompts", "5", "--random-output-len", "8", "--retries", "1000"});
  EXPECT_EQ(again["runs"][0]["completed"], 5) << again;
  EXPECT_GT(again["runs"][0]["retries"], 0);
  // None in time: that is a failure of the command, too. A server that has served nothing yet takes
  // any deadline.
  ServerProcess fresh;
  ASSERT_TRUE(fresh.ready()) << fresh.process().err();
  const Finished late = RunQuantd({"bench", "serve", "--target", fresh.grpc(), "--max-concurrency",
                                   "1", "--num-prompts", "1", "--random-output-len", "380",
                                   "--timeout", "0.01", "--warmup", "0"});
  EXPECT_EQ(late.code, 1);
  EXPECT_THAT(late.out, HasSubstr("DEADLINE_EXCEEDED 1"));
  EXPECT_THAT(late.err, HasSubstr("no request completed"));
}

TEST_F(BenchCommand, SaysWhatIsWrong) {
  const std::pair<std::vector<std::string>, std::string> wrong_usage[] = {
      {{}, "subcommand"},
      {{"serve"}, "--target is required"},
      {{"serve", "--target", "t", "--random-input-len", "0"},
       "--random-input-len is \"0\", allowed"},
      {{"serve", "--target", "t", "--goodput", "x:1"}, "--goodput is \"x:1\", allowed"},
      {{"serve", "--target", "t", "--request-rate", "0"}, "--request-rate is 0, allowed"},
      {{"serve", "--target", "t", "--duration", "5"}, "--duration needs --request-rate"},
      {{"serve", "--target", "t", "--sweep", "3", "--request-rate", "1"}, "excludes"},
      {{"serve", "--target", "t", "--request-rate", "1,2", "--max-concurrency", "1,2"}, "only one"},
      {{"engine"}, "model"},
      {{"engine", "m", "--batch-size", "0"}, "--batch-size"},
  };
  for (const auto& [arguments, words] : wrong_usage) {
    std::vector<std::string> all = {"bench"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    const Finished run = RunQuantd(all);
    EXPECT_EQ(run.code, 2) << words;
    EXPECT_THAT(run.err, HasSubstr(words));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
  const Finished gone = RunQuantd({"bench", "serve", "--target", "127.0.0.1:1"});
  EXPECT_EQ(gone.code, 1);
  EXPECT_THAT(gone.err, HasSubstr("quantd: 127.0.0.1:1: "));
  testing_support::WriteFile(Path("c"), "{");
  const Finished config =
      RunQuantd({"bench", "serve", "--target", "127.0.0.1:1", "--service-config", Path("c")});
  EXPECT_THAT(config.err, HasSubstr("c: is no JSON"));
}

TEST_F(BenchCommand, MeasuresTheEngineWithoutAServer) {
  const Finished run = RunQuantd({"bench", "engine", DemoModel(), "--profile", "nf4-dq",
                                  "--batch-size", "1,3", "--input-len", "20", "--output-len", "10",
                                  "--num-iters", "2", "--json", Path("e.json")});
  ASSERT_EQ(run.code, 0) << run.err;
  const json report = json::parse(ReadFile(Path("e.json")), nullptr, /*allow_exceptions=*/false);
  ASSERT_EQ(report["runs"].size(), 2u);
  for (const json& r : report["runs"]) {
    EXPECT_GT(r["decode_throughput"], 0) << r;
    EXPECT_GT(r["prefill_throughput"], 0);
    EXPECT_EQ(r["ttft_ms"]["count"], 2 * r["batch_size"].get<int>());
    EXPECT_EQ(r["itl_ms"]["count"], 2 * 9 * r["batch_size"].get<int>());
    EXPECT_GT(r["step_ms"]["count"], 0);
  }
}

}  // namespace
}  // namespace quantd::test

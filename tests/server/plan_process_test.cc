// `quantd plan`, `profile: auto`, and the plan beside what a server really takes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "engine/weights/profile.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"
#include "tests/server/http_get.h"
#include "tests/server/process.h"

namespace quantd::test {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::DoubleNear;
using ::testing::HasSubstr;

// A model of which there is nothing but its shape.
class PlanCommand : public ::testing::Test {
 protected:
  PlanCommand() {
    testing_support::WriteFile(Config(), R"({"architectures": ["LlamaForCausalLM"],
      "model_type": "llama",
      "hidden_act": "silu", "rms_norm_eps": 1e-5, "hidden_size": 4096, "intermediate_size": 11008,
      "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
      "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": false,
      "torch_dtype": "float16"})");
  }
  std::string Config() const { return (dir_.path() / "config.json").string(); }

  json Plan(std::vector<std::string> flags) const {
    flags.insert(flags.begin(), {"plan", "--model", Config(), "--json"});
    const Finished run = RunQuantd(flags);
    EXPECT_EQ(run.code, 0) << run.err;
    return json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  }

  testing_support::TempDir dir_;
};

TEST_F(PlanCommand, JsonHasEveryProfileWithItsBytes) {
  const json plan =
      Plan({"--memory", "24GB", "--context", "2048", "--concurrency", "4", "--bandwidth", "1TB/s"});
  EXPECT_EQ(plan["memory_bytes"], 24'000'000'000);
  EXPECT_EQ(plan["recommended"], "int8");
  EXPECT_EQ(plan["runner_up"], "nf4");
  EXPECT_EQ(plan["profiles"].size(), BuiltInProfiles().size());
  EXPECT_FALSE(plan["reasons"].empty());
  const std::map<std::string, double> weights = {
      {"fp32", 26.96}, {"fp16", 13.48}, {"int8", 7.00}, {"nf4", 4.17}, {"nf4-dq", 3.87}};
  int found = 0;
  for (const json& p : plan["profiles"]) {
    EXPECT_GT(p["roofline_tokens_per_second_concurrent"], p["roofline_tokens_per_second"]) << p;
    const json& bytes = p["bytes"];
    const int64_t kv = 4 * 2048 * bytes["kv_per_token"].get<int64_t>();
    EXPECT_GE(bytes["total"], bytes["weights"].get<int64_t>() + kv);
    EXPECT_EQ(p["fits"], bytes["total"].get<double>() <= 0.9 * 24e9);
    if (const auto it = weights.find(p["name"]); it != weights.end()) {
      ++found;
      EXPECT_THAT(bytes["weights"].get<double>() * 1e-9, DoubleNear(it->second, 0.015)) << p;
    }
  }
  EXPECT_EQ(found, 5);
}

TEST_F(PlanCommand, TableEndsWithTheVerdict) {
  const Finished run = RunQuantd(
      {"plan", Config(), "--memory", "6GB", "--goal", "limited-vram", "--context", "512"});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.out, AllOf(HasSubstr("recommended: nf4"), HasSubstr("runner-up"),
                             HasSubstr("bandwidth not known")));
  const Finished none = RunQuantd({"plan", Config(), "--memory", "1GB"});
  EXPECT_EQ(none.code, 0) << none.err;
  EXPECT_THAT(none.out, AllOf(HasSubstr("recommended: none"), HasSubstr("nothing fits")));
}

TEST_F(PlanCommand, WithoutMemoryItIsThisMachines) {
  const json plan = Plan({"--backend", "cpu"});
  EXPECT_GT(plan["memory_bytes"], 0);
  EXPECT_GT(plan["bytes_per_second"], 1e8);
}

TEST_F(PlanCommand, FaultsAreOneLine) {
  const std::pair<std::vector<std::string>, const char*> table[] = {
      {{"--memory", "lots"}, "--memory \"lots\": not a size like 16GB"},
      {{"--memory", "0"}, "--memory \"0\""},
      {{"--memory", "8GB", "--bandwidth", "fast"}, "--bandwidth \"fast\": not a rate"},
      {{"--memory", "8GB", "--goal", "speed"}, "\"speed\" is not one of"},
      {{"--memory", "8GB", "--context", "9000"}, "context is 9000, allowed: 1 to the model's 4096"},
      {{"--memory", "8GB", "--concurrency", "0"}, "concurrency is 0"},
      {{"--memory", "8GB", "--rules", "/no/such.yaml"}, "/no/such.yaml"},
      {{"--memory", "8GB", "--profile", "/no/such.yaml"}, "/no/such.yaml"},
  };
  for (const auto& [flags, message] : table) {
    std::vector<std::string> arguments = {"plan", Config()};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    const Finished run = RunQuantd(arguments);
    EXPECT_EQ(run.code, 1) << message;
    EXPECT_THAT(run.err, HasSubstr(message));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
}

v1::GetModelInfoResponse ModelInfo(Client& client) {
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  EXPECT_TRUE(client.stub().GetModelInfo(&context, {}, &info).ok());
  return info;
}

TEST(PlanServed, AutoIsResolvedAndItsReasonsAreLogged) {
  Guarded guarded({"profile=auto"});
  ASSERT_TRUE(guarded.ready());
  const std::string log = guarded.server().process().err();
  EXPECT_THAT(log, AllOf(HasSubstr("profile auto: int8"), HasSubstr("goal production"),
                         HasSubstr("memory planned")));
  EXPECT_EQ(ModelInfo(guarded.client()).quantization().profile(), "int8");
}

TEST(PlanServed, ByThePlansArgumentsItIsWhatWasPlanned) {
  for (const char* concurrency : {"3", "20"}) {
    const Finished run = RunQuantd({"plan", DemoModel(), "--json", "--memory", "40MB", "--backend",
                                    "cpu", "--context", "100", "--concurrency", concurrency});
    ASSERT_EQ(run.code, 0) << run.err;
    const json plan = json::parse(run.out);
    std::vector<std::string> overrides;
    const json& arguments = plan["serve_arguments"];
    ASSERT_EQ(arguments[0], "--model");
    ASSERT_EQ(arguments[2], "--profile");
    overrides.push_back("profile=" + arguments[3].get<std::string>());
    for (size_t i = 4; i < arguments.size(); i += 2) {
      ASSERT_EQ(arguments[i], "--set");
      overrides.push_back(arguments[i + 1]);
    }
    Guarded guarded(overrides);
    ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
    const auto info = ModelInfo(guarded.client());
    EXPECT_EQ(info.context_length(), 100);
    for (const json& p : plan["profiles"]) {
      if (p["name"] != plan["recommended"]) continue;
      int64_t planned = 0;
      for (const v1::MemoryUse& use : info.memory()) planned += use.planned_bytes();
      EXPECT_EQ(planned, p["bytes"]["total"]);
    }
  }
}

TEST(PlanServed, WhatIsTakenIsWhatWasPlanned) {
  Guarded guarded({"scheduler.max_num_seqs=4", "scheduler.max_num_batched_tokens=64"});
  ASSERT_TRUE(guarded.ready());
  // Steps as large as they come.
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      Client client(guarded.server().grpc());
      std::string text;
      for (int word = 0; word < 120; ++word) text += " evening";
      v1::GenerateRequest request = Greedy(16, text);
      request.mutable_sampling()->set_temperature(1);
      std::vector<int32_t> ids;
      EXPECT_TRUE(client.Generate(request, &ids).ok());
    });
  }
  for (std::thread& client : clients) client.join();
  double planned = 0, taken = 0;
  const v1::GetModelInfoResponse info = ModelInfo(guarded.client());
  for (const v1::MemoryUse& use : info.memory()) {
    EXPECT_LE(use.bytes(), use.planned_bytes()) << use.component();
    EXPECT_TRUE(use.component() == "workspace" || use.bytes() == use.planned_bytes())
        << use.ShortDebugString();
    planned += static_cast<double>(use.planned_bytes());
    taken += static_cast<double>(use.bytes());
  }
  EXPECT_NEAR(taken, planned, 0.01 * planned);
  const std::string page = HttpGet(guarded.server().http(), "/metrics").body;
  EXPECT_THAT(page,
              AllOf(HasSubstr("quantd_memory_plan_bytes{"), HasSubstr("quantd_memory_bytes{")));
}

// The kernel's account against the plan's: two profiles differ by what their weights do, and by
// some huge pages (of 2 MiB) of caches and heaps that are touched in part.
TEST(PlanServed, TheProcessGrowsByWhatThePlanSays) {
  // _GLIBCXX_TSAN: proto/CMakeLists.txt takes __SANITIZE_THREAD__ from what includes protobuf.
#if defined(_GLIBCXX_TSAN) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the sanitizer keeps notes on every byte, in memory of the process";
#endif
  int64_t planned[2], resident[2];
  const char* const profiles[] = {"nf4-dq", "fp32"};
  for (int i = 0; i < 2; ++i) {
    Guarded guarded({std::string("profile=") + profiles[i]});
    ASSERT_TRUE(guarded.ready());
    planned[i] = 0;
    const v1::GetModelInfoResponse info = ModelInfo(guarded.client());
    for (const v1::MemoryUse& use : info.memory()) {
      // The cache and the workspace are taken page by page, as they are used.
      if (use.component() != "kv_cache" && use.component() != "workspace" &&
          use.component() != "activations") {
        planned[i] += use.planned_bytes();
      }
    }
    resident[i] = guarded.server().MemoryBytes("RssAnon");
  }
  const auto growth = static_cast<double>(planned[1] - planned[0]);
  EXPECT_NEAR(static_cast<double>(resident[1] - resident[0]), growth, 0.25 * growth + (8 << 20));
}

TEST(PlanServed, WhatCannotFitIsRefusedBeforeItIsRead) {
  const Finished run =
      RunQuantd({"serve", "--model", DemoModel(), "--profile", "nf4-dq", "--listen", "127.0.0.1:0",
                 "--http", "", "--set", "kv.cache_bytes=1TiB"});
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, AllOf(HasSubstr("under nf4-dq it would take"), HasSubstr("are free"),
                             HasSubstr("what would fit: a KV cache of")));
}

}  // namespace
}  // namespace quantd::test

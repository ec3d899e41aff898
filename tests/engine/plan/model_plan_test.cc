// Which profile is recommended, and what is said about it.
#include "engine/plan/model_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/weights/profile.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int64_t kGigabyte = 1'000'000'000;

std::string Config(const std::string& dtype = "bfloat16") {  // Llama 2, 7B
  return R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
             "rms_norm_eps": 1e-5, "hidden_size": 4096, "intermediate_size": 11008,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
             "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": false,
             "torch_dtype": ")" +
         dtype + "\"}";
}

const SelectionRules& Rules() {
  static const SelectionRules rules = LoadSelectionRules("").value();
  return rules;
}

PlanRequest RequestFor(int64_t memory, const std::string& goal = "") {
  PlanRequest request;
  request.device.backend = PlanBackend::kCuda;
  request.device.memory_bytes = memory;
  request.goal = goal;
  return request;
}

ModelPlan Plan(const PlanRequest& request, const std::string& config = Config()) {
  auto plan = PlanConfig(config, "config.json", request, Rules());
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *std::move(plan);
}

TEST(ModelPlan, EveryGoalTakesTheFirstOfItsProfilesThatFits) {
  struct Case {
    const char* goal;
    int64_t gigabytes;
    const char* recommended;
    const char* runner_up;
  };
  for (const Case& c : std::vector<Case>{
           {"production", 24, "int8", "nf4"},
           {"production", 10, "nf4", "nf4-dq"},
           {"production", 8, "nf4", "nf4-dq"},
           {"limited-vram", 80, "nf4", "nf4-dq"},
           {"best-quality", 80, "bf16", "int8"},
           {"best-quality", 12, "int8", "nf4"},
           {"qlora", 80, "nf4-dq", ""},
           {"research", 80, "bf16", "int8"},
       }) {
    const ModelPlan plan = Plan(RequestFor(c.gigabytes * kGigabyte, c.goal));
    EXPECT_EQ(plan.recommended, c.recommended) << c.goal << " in " << c.gigabytes;
    EXPECT_EQ(plan.runner_up, c.runner_up) << c.goal << " in " << c.gigabytes;
  }
}

TEST(ModelPlan, BelowSixteenGigabytesForSevenBillionFourBitsAreTheDefault) {
  EXPECT_EQ(Plan(RequestFor(15 * kGigabyte)).recommended, "nf4");
  EXPECT_EQ(Plan(RequestFor(16 * kGigabyte)).recommended, "int8");
  EXPECT_EQ(Plan(RequestFor(80 * kGigabyte)).recommended, "int8");
}

TEST(ModelPlan, DoubleQuantizationIsTakenWhereItIsWhatFits) {
  PlanRequest request = RequestFor(0, "limited-vram");
  request.device.memory_bytes = 100 * kGigabyte;
  const ModelPlan wide = Plan(request);
  const int64_t nf4 = wide.Find("nf4")->memory.total();
  const int64_t nf4_dq = wide.Find("nf4-dq")->memory.total();
  ASSERT_LT(nf4_dq, nf4);
  request.device.memory_bytes =
      static_cast<int64_t>(static_cast<double>(nf4 + nf4_dq) / 2 / Rules().memory_utilization);
  const ModelPlan plan = Plan(request);
  EXPECT_EQ(plan.recommended, "nf4-dq");
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("nf4 does not fit")));
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("of memory it would be nf4"))));
}

TEST(ModelPlan, AFloat16CheckpointsBestQualityIsFloat16) {
  EXPECT_EQ(Plan(RequestFor(80 * kGigabyte, "best-quality"), Config("float16")).recommended,
            "fp16");
}

TEST(ModelPlan, WhereNothingFitsTheReasonsSayWhatTheSmallestTakes) {
  const ModelPlan plan = Plan(RequestFor(2 * kGigabyte));
  EXPECT_EQ(plan.recommended, "");
  EXPECT_THAT(plan.reasons, Contains(AllOf(HasSubstr("nothing fits: hqq2"),
                                           HasSubstr("1 request of 4096 tokens"))));
}

TEST(ModelPlan, WhereNoPreferredOneFitsAnotherDoes) {
  // Between hqq2 and nf4-dq.
  PlanRequest request = RequestFor(6 * kGigabyte, "qlora");
  request.context = 512;
  request.device.memory_bytes = 4'500'000'000;
  const ModelPlan plan = Plan(request);
  EXPECT_EQ(plan.recommended, "hqq2");
  EXPECT_THAT(plan.reasons, Contains(HasSubstr("none that this goal prefers fits")));
}

TEST(ModelPlan, RequestsThatFitAreCountedInWholeContexts) {
  PlanRequest request = RequestFor(24 * kGigabyte);
  request.context = 1000;
  request.concurrency = 4;
  const ModelPlan plan = Plan(request);
  for (const ProfilePlan& p : plan.profiles) {
    if (!p.planned) continue;
    EXPECT_EQ(p.max_requests, p.max_kv_tokens / 1008) << p.name << ": blocks of 16";
    EXPECT_EQ(p.fits, p.memory.total() <= plan.usable_bytes) << p.name;
    // One block is reserved, and four contexts may end in a block that is not full.
    EXPECT_TRUE(p.fits || p.max_requests < 4) << p.name;
    EXPECT_TRUE(!p.fits || p.max_requests >= 3) << p.name;
  }
}

TEST(ModelPlan, TheRooflineIsBandwidthOverBytesOfAStep) {
  PlanRequest request = RequestFor(80 * kGigabyte);
  request.device.bytes_per_second = 3e12;
  request.concurrency = 8;
  const ModelPlan plan = Plan(request);
  const ProfilePlan& bf16 = *plan.Find("bf16");
  const double weights = 13.216e9;  // without the embedding
  const double kv = 4096.0 * 524288;
  EXPECT_NEAR(bf16.tokens_per_second, 3e12 / (weights + kv), 0.5);
  EXPECT_NEAR(bf16.tokens_per_second_concurrent, 8 * 3e12 / (weights + 8 * kv), 1.0);
  EXPECT_GT(plan.Find("nf4")->tokens_per_second, 2 * bf16.tokens_per_second);
}

TEST(ModelPlan, KnowsWhatIsTrainableAndWhatIsClaimed) {
  const ModelPlan plan = Plan(RequestFor(80 * kGigabyte));
  EXPECT_TRUE(plan.Find("nf4-dq")->trainable_with_peft);
  EXPECT_TRUE(plan.Find("bf16")->trainable_with_peft);
  ASSERT_TRUE(plan.Find("nf4")->claimed_quality.has_value());
  EXPECT_EQ(plan.Find("nf4")->claimed_quality->low, 0.95);
  EXPECT_FALSE(plan.Find("hqq2")->claimed_quality.has_value());
  EXPECT_EQ(plan.profiles.size(), BuiltInProfiles().size());
  EXPECT_TRUE(std::is_sorted(plan.profiles.begin(), plan.profiles.end(),
                             [](const ProfilePlan& a, const ProfilePlan& b) {
                               return a.memory.weights() > b.memory.weights();
                             }));
}

TEST(ModelPlan, AQuantizedCheckpointIsTakenAsItIs) {
  PlanRequest request = RequestFor(kGigabyte);
  request.model = QUANTD_TEST_DATA "/models/gptq4_sym";
  const auto plan = PlanModel(request, Rules());
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->recommended, "checkpoint");
  EXPECT_THAT(plan->Find("bf16")->refusal, HasSubstr("quantized already"));
  EXPECT_TRUE(plan->Find("checkpoint")->fits);
}

TEST(ModelPlan, AFoldersHeadersAreCheckedAndPlannedAsLoaded) {
  PlanRequest request = RequestFor(kGigabyte);
  request.model = QUANTD_SOURCE_DIR "/demo/model";
  const auto plan = PlanModel(request, Rules());
  ASSERT_TRUE(plan.ok()) << plan.status();
  const auto by_config = [&] {
    request.model = QUANTD_SOURCE_DIR "/demo/model/config.json";
    return PlanModel(request, Rules()).value();
  }();
  EXPECT_EQ(plan->parameters, by_config.parameters);
  for (const ProfilePlan& p : plan->profiles) {
    EXPECT_EQ(p.memory.bytes, by_config.Find(p.name)->memory.bytes) << p.name;
  }
}

TEST(ModelPlan, BadRequestsNameWhatIsAllowed) {
  const auto fails = [](const PlanRequest& request) {
    return std::string(PlanConfig(Config(), "config.json", request, Rules()).status().message());
  };
  PlanRequest request = RequestFor(kGigabyte, "fastest");
  EXPECT_THAT(fails(request), AllOf(HasSubstr("\"fastest\""), HasSubstr("limited-vram")));
  request = RequestFor(kGigabyte);
  request.context = 5000;
  EXPECT_THAT(fails(request), AllOf(HasSubstr("5000"), HasSubstr("4096")));
  request = RequestFor(kGigabyte);
  request.concurrency = 0;
  EXPECT_THAT(fails(request), HasSubstr("concurrency is 0"));
  request = RequestFor(kGigabyte);
  request.model = "/no/such/folder";
  EXPECT_EQ(PlanModel(request, Rules()).status().code(), absl::StatusCode::kNotFound);
  request.model = QUANTD_TEST_DATA "/models/gptq4_sym/config.json";
  EXPECT_THAT(std::string(PlanModel(request, Rules()).status().message()),
              AllOf(HasSubstr("quantized (gptq"), HasSubstr("give the folder")));
}

TEST(SelectionRules, FaultsAreAllNamed) {
  const auto rules = ParseSelectionRules(R"(
memory_utilization: 1.5
goals:
  fast: {prefer: [nf5, int8], becuase: it is}
  none: {prefer: []}
default_goal:
  - {bytes_per_parameter_below: 2, goal: quick}
claimed_quality: {int8: [0.99], nf4: [0.98, 0.95]}
)",
                                         "rules.yaml");
  EXPECT_EQ(rules.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(rules.status().message());
  for (const char* part : {"rules.yaml", "memory_utilization: 1.5", "nf5", "becuase", "because",
                           "goals.none.prefer", "\"quick\"", "the last entry must apply always",
                           "claimed_quality.int8", "claimed_quality.nf4"}) {
    EXPECT_THAT(message, HasSubstr(part));
  }
}

}  // namespace
}  // namespace quantd

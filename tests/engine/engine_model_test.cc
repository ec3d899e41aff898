// The promise that results do not depend on the batch, with real models: a request gives the same
// tokens and the same bits of logprobs alone, batched, chunked, prefix-cached, preempted,
// pipelined, replayed as graphs, and with any number of threads. Each case also asserts from the
// statistics that what it is about really happened.
#include <gtest/gtest.h>

#include <bit>
#include <random>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/load.h"
#include "engine/text/tokenizer.h"
#include "engine/weights/profile.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/ref/ref_backend.h"
#include "kernels/status.h"

namespace quantd {
namespace {

struct ModelCase {
  std::string backend;  // "ref", "cpu" or "cuda_emulated_invariant"
  std::optional<CpuIsa> isa;
  std::string profile;
  std::string folder;
  int32_t longest_prompt;
  std::optional<DType> kv_dtype = std::nullopt;  // none: the profile's
};

std::string NameOf(const ModelCase& c) {
  std::string name = c.backend + "_" +
                     (c.isa.has_value() ? std::string(ToString(*c.isa)) : "plain") + "_" +
                     c.profile + (c.kv_dtype ? "_kv_" + std::string(ToString(*c.kv_dtype)) : "");
  for (char& ch : name) {
    if (std::isalnum(static_cast<unsigned char>(ch)) == 0) ch = '_';
  }
  return name;
}

void PrintTo(const ModelCase& c, std::ostream* out) { *out << NameOf(c); }

std::vector<ModelCase> Cases() {
  std::vector<ModelCase> cases;
  for (const char* profile : {"nf4-dq", "int8", "bf16"}) {
    cases.push_back({"ref", std::nullopt, profile, QUANTD_TEST_DATA "/models/llama_bf16", 40});
    for (const CpuIsa isa : SupportedIsas()) {
      cases.push_back({"cpu", isa, profile, QUANTD_SOURCE_DIR "/demo/model", 120});
    }
#ifdef QUANTD_HAS_CUDA_EMULATION
    cases.push_back({"cuda_emulated_invariant", std::nullopt, profile,
                     QUANTD_TEST_DATA "/models/llama_bf16", 40});
#endif
  }
  std::vector<ModelCase> int8_kv;
  for (const ModelCase& c : cases) {
    if (c.profile != "bf16") continue;
    int8_kv.push_back(c);
    int8_kv.back().kv_dtype = DType::kI8;
  }
  cases.insert(cases.end(), int8_kv.begin(), int8_kv.end());
  return cases;
}

// A model used by one engine after another.
class SharedModel : public Model {
 public:
  explicit SharedModel(Model& model) : model_(model) {}
  const DecoderSpec& spec() const override { return model_.spec(); }
  DType compute_dtype() const override { return model_.compute_dtype(); }
  int64_t max_rows() const override { return model_.max_rows(); }
  int64_t max_logit_rows() const override { return model_.max_logit_rows(); }
  void Forward(const Batch& batch, const KvCache& kv, TensorView logits,
               const LinearObserver* observer) override {
    model_.Forward(batch, kv, logits, observer);
  }

 private:
  Model& model_;
};

struct Loaded {
  std::unique_ptr<Backend> backend;
  LoadedModel model;
};

Loaded Load(const ModelCase& c, int threads, [[maybe_unused]] bool graphs = true) {
  Loaded loaded;
  if (c.backend == "ref") {
    loaded.backend = CreateRefBackend();
#ifdef QUANTD_HAS_CUDA_EMULATION
  } else if (c.backend == "cuda_emulated_invariant") {
    auto cuda = cuda_emulated::CreateBackend(
        {.determinism = Determinism::kBatchInvariant, .graphs = graphs});
    EXPECT_TRUE(cuda.ok()) << cuda.status();
    loaded.backend = std::move(*cuda);
#endif
  } else {
    auto cpu = CreateCpuBackend({.num_threads = threads, .isa = c.isa});
    EXPECT_TRUE(cpu.ok()) << cpu.status();
    loaded.backend = std::move(*cpu);
  }
  LoadOptions options;
  options.model_dir = c.folder;
  options.max_rows = 256;
  auto profile = LoadProfile(c.profile);
  EXPECT_TRUE(profile.ok()) << profile.status();
  options.profile = std::move(*profile);
  if (c.kv_dtype) options.profile.kv_dtype = c.kv_dtype;
  auto model = LoadModel(*loaded.backend, options);
  EXPECT_TRUE(model.ok()) << model.status();
  loaded.model = std::move(*model);
  return loaded;
}

EngineOptions Roomy() {
  EngineOptions options;
  options.max_num_seqs = 16;
  options.max_num_batched_tokens = 256;
  options.num_kv_blocks = 300;
  return options;
}

struct Outcome {
  std::vector<GenerateResult> results;
  EngineStats stats;
};

// `together`: all at once; else one after the other.
Outcome RunOn(Loaded& loaded, const EngineOptions& options, const std::vector<Request>& requests,
              bool together) {
  LoadedModel shared;
  shared.model = std::make_unique<SharedModel>(*loaded.model.model);
  shared.spec = loaded.model.spec;
  shared.defaults = loaded.model.defaults;
  shared.kv_dtype = loaded.model.kv_dtype;
  auto engine = Engine::Create(*loaded.backend, std::move(shared), nullptr, options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  Outcome run;
  if (together) {
    auto results = GenerateAll(**engine, requests);
    EXPECT_TRUE(results.ok()) << results.status();
    run.results = std::move(*results);
  } else {
    for (const Request& request : requests) {
      auto result = Generate(**engine, request);
      EXPECT_TRUE(result.ok()) << result.status();
      run.results.push_back(std::move(*result));
    }
  }
  (*engine)->Drain(std::chrono::seconds(10));
  run.stats = (*engine)->Stats();
  EXPECT_EQ(run.stats.kv_blocks_free, run.stats.kv_blocks_total);
  return run;
}

// Tokens and the bits of every logprob.
void ExpectSame(const Outcome& expected, const Outcome& actual, const char* what) {
  ASSERT_EQ(expected.results.size(), actual.results.size());
  int bad = 0;
  for (size_t i = 0; i < expected.results.size() && bad < 5; ++i) {
    const auto& e = expected.results[i].tokens;
    const auto& a = actual.results[i].tokens;
    EXPECT_EQ(e.size(), a.size()) << what << ", request " << i;
    for (size_t t = 0; t < std::min(e.size(), a.size()); ++t) {
      bool same = e[t].token_id == a[t].token_id &&
                  std::bit_cast<uint32_t>(e[t].logprob) == std::bit_cast<uint32_t>(a[t].logprob) &&
                  e[t].top.size() == a[t].top.size();
      for (size_t k = 0; same && k < e[t].top.size(); ++k) {
        same = e[t].top[k].token_id == a[t].top[k].token_id &&
               std::bit_cast<uint32_t>(e[t].top[k].logprob) ==
                   std::bit_cast<uint32_t>(a[t].top[k].logprob);
      }
      if (same) continue;
      ADD_FAILURE() << fmt::format("{}: request {} token {}: {} ({:.9g}) instead of {} ({:.9g})",
                                   what, i, t, a[t].token_id, a[t].logprob, e[t].token_id,
                                   e[t].logprob);
      ++bad;
      break;
    }
  }
}

class EngineModel : public testing::TestWithParam<ModelCase> {
 protected:
  // Prompts of many lengths, the longer half with a common beginning; greedy and seeded.
  std::vector<Request> Requests(int64_t vocab, int32_t count, int32_t max_tokens) const {
    std::mt19937 random(11);
    const int32_t longest = GetParam().longest_prompt;
    std::vector<int32_t> common;
    for (int32_t i = 0; i < longest / 2; ++i) {
      common.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
    }
    std::vector<Request> requests;
    for (int32_t i = 0; i < count; ++i) {
      Request request;
      const int32_t size = 1 + (longest - 1) * i / std::max(count - 1, 1);
      for (int32_t t = 0; t < size; ++t) {
        const auto drawn = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
        const bool shared = size > longest / 2 && t < longest / 2;
        request.prompt_ids.push_back(shared ? common[static_cast<size_t>(t)] : drawn);
      }
      request.sampling.max_tokens = max_tokens;
      request.sampling.ignore_eos = true;
      request.sampling.logprobs = 3;
      request.sampling.temperature = i % 2 == 0 ? 0.0f : 0.9f;
      request.sampling.seed = 1000 + static_cast<uint64_t>(i);
      requests.push_back(std::move(request));
    }
    return requests;
  }
};

TEST_P(EngineModel, ResultsDoNotDependOnHowTheyWereComputed) {
  const ModelCase& c = GetParam();
  Loaded one = Load(c, 1);
  // Emulated devices run a thousand times slower.
  const bool slow = c.backend == "cuda_emulated_invariant";
  const int count = slow ? 4 : 9, tokens = slow ? 14 : 10;
  const auto requests = Requests(one.model.spec.vocab_size, count, tokens);
  int64_t prompt_tokens = 0;
  for (const Request& r : requests) prompt_tokens += static_cast<int64_t>(r.prompt_ids.size());

  EngineOptions alone = Roomy();
  alone.enable_prefix_caching = false;
  const Outcome expected = RunOn(one, alone, requests, /*together=*/false);
  EXPECT_EQ(expected.stats.steps, count * tokens) << "every prompt whole";

  const Outcome batched = RunOn(one, alone, requests, /*together=*/true);
  EXPECT_LT(batched.stats.steps, count * tokens / 2) << "steps were shared";
  ExpectSame(expected, batched, "batched");

  EngineOptions chunks = alone;
  chunks.max_num_seqs = 1;
  chunks.max_num_batched_tokens = 7;
  const Outcome chunked = RunOn(one, chunks, requests, /*together=*/false);
  EXPECT_GT(chunked.stats.steps, count * tokens + prompt_tokens / 14)
      << "prompts took several steps";
  ExpectSame(expected, chunked, "chunked");

  const Outcome cached = RunOn(one, Roomy(), requests, /*together=*/false);
  EXPECT_GT(cached.stats.prefix_cache_hits, 0);
  int64_t cached_tokens = 0;
  for (const auto& r : cached.results) cached_tokens += r.usage.cached_tokens;
  EXPECT_EQ(cached_tokens, cached.stats.prefix_cache_hits);
  ExpectSame(expected, cached, "prefix cached");

  EngineOptions tight = alone;
  tight.max_num_batched_tokens = 32;
  // Room for one and a half of the longest.
  tight.num_kv_blocks = (c.longest_prompt + 10) * 3 / 2 / tight.block_size + 1;
  const Outcome preempted = RunOn(one, tight, requests, /*together=*/true);
  EXPECT_GT(preempted.stats.preemptions, 0);
  ExpectSame(expected, preempted, "preempted");

  EngineOptions pipelined = tight;
  pipelined.pipeline_depth = 1;
  pipelined.enable_prefix_caching = true;
  const Outcome ahead = RunOn(one, pipelined, requests, /*together=*/true);
  EXPECT_GT(ahead.stats.preemptions, 0);
  EXPECT_GT(ahead.stats.prefix_cache_hits, 0);
  ExpectSame(expected, ahead, "pipelined, cached and preempted");

  const bool graphs = one.backend->PaddedShape({.rows = 3, .decode_only = true}).rows > 3;
  EXPECT_EQ(graphs, c.backend == "cuda_emulated_invariant");
  for (const Outcome* outcome : {&expected, &batched, &cached, &preempted, &ahead}) {
    EXPECT_EQ(outcome->stats.replayed_steps > 0, graphs) << outcome->stats.steps << " steps";
  }
  EXPECT_EQ(expected.stats.replayed_steps > expected.stats.steps / 2, graphs);
  if (graphs) {
    Loaded eager = Load(c, 1, /*graphs=*/false);
    const Outcome outcome = RunOn(eager, pipelined, requests, /*together=*/true);
    EXPECT_EQ(outcome.stats.replayed_steps, 0);
    ExpectSame(expected, outcome, "without graphs");
  }

  if (c.backend != "cpu") return;
  Loaded two = Load(c, 2);
  ExpectSame(expected, RunOn(two, alone, requests, /*together=*/true), "two threads");
}

INSTANTIATE_TEST_SUITE_P(All, EngineModel, testing::ValuesIn(Cases()),
                         [](const auto& test) { return NameOf(test.param); });

// The demo model as a user meets it: text in, text out, the same for the same seed.
TEST(EngineDemoModel, WritesTheTextOfItsTokens) {
  const ModelCase c{"cpu", std::nullopt, "nf4-dq", QUANTD_SOURCE_DIR "/demo/model", 0};
  if (SupportedIsas().empty()) GTEST_SKIP() << "no AVX2";
  auto tokenizer = Tokenizer::Load(c.folder);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  Loaded loaded = Load(c, 0);
  auto engine = Engine::Create(*loaded.backend, std::move(loaded.model), tokenizer->get(), Roomy());
  ASSERT_TRUE(engine.ok()) << engine.status();
  auto prompt = (*tokenizer)->Encode("The old man looked at the sea and", true);
  ASSERT_TRUE(prompt.ok());
  Request request;
  request.prompt_ids = *prompt;
  request.sampling.max_tokens = 60;
  request.sampling.temperature = 0.8f;
  request.sampling.seed = 7;
  auto first = Generate(**engine, request);
  auto second = Generate(**engine, request);
  request.sampling.seed = 8;
  auto other = Generate(**engine, request);
  ASSERT_TRUE(first.ok() && second.ok() && other.ok());
  EXPECT_EQ(first->text, (*tokenizer)->Decode(first->token_ids(), true));
  EXPECT_EQ(first->token_ids(), second->token_ids());
  EXPECT_NE(first->token_ids(), other->token_ids());

  // A stop string taken from the text itself cuts it there.
  ASSERT_GT(first->text.size(), 20u);
  request.sampling.seed = 7;
  request.sampling.stop = {first->text.substr(10, 6)};
  auto stopped = Generate(**engine, request);
  ASSERT_TRUE(stopped.ok());
  EXPECT_EQ(stopped->finish_reason, FinishReason::kStop);
  EXPECT_EQ(stopped->text, first->text.substr(0, first->text.find(request.sampling.stop[0])));
}

}  // namespace
}  // namespace quantd

// Evaluator on the demo model and on small ones: figures against those computed from the logits of
// whole sequences, another way.
#include "engine/eval/evaluator.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/text/tokenizer.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::HostBackends;
using testing_support::kDemo;
using testing_support::MakeBackend;
using testing_support::ModelRunner;
using testing_support::OptionsFor;

constexpr int64_t kContext = 96;

struct Loaded {
  std::unique_ptr<Backend> backend;
  LoadedModel model;

  EvalTarget target() { return {backend.get(), model.model.get(), model.kv_dtype}; }
};

Loaded Load(const std::string& profile, int64_t rows = 40) {
  Loaded out;
  out.backend = MakeBackend(HostBackends().back());
  LoadOptions options = OptionsFor(kDemo, profile);
  options.max_rows = options.max_logit_rows = rows;
  auto loaded = LoadModel(*out.backend, options);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  out.model = std::move(*loaded);
  return out;
}

const EvalText& Text() {
  static const EvalText text = [] {
    const std::string all = testing_support::ReadFile(QUANTD_SOURCE_DIR "/demo/validation.txt");
    const auto tokenizer = Tokenizer::Load(kDemo);
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    auto made = MakeEvalText(**tokenizer, {all.substr(0, 3000)},
                             {.context = kContext, .stride = 64, .max_tokens = 300});
    EXPECT_TRUE(made.ok()) << made.status();
    return *made;
  }();
  return text;
}

EvalSettings Settings() {
  EvalSettings settings;
  settings.context = kContext;
  settings.linear_windows = 2;
  settings.greedy_prompts = 3;
  settings.greedy_prompt_tokens = 16;
  settings.greedy_tokens = 24;
  settings.decode_steps = 4;
  settings.decode_seconds = 0;
  return settings;
}

std::unique_ptr<Evaluator> Make(Loaded& model, Loaded* reference) {
  std::optional<EvalTarget> other;
  if (reference != nullptr) other = reference->target();
  auto evaluator = Evaluator::Create(Text(), Settings(), model.target(), other);
  EXPECT_TRUE(evaluator.ok()) << evaluator.status();
  return std::move(*evaluator);
}

// -log p of every scored token, from the logits of the window in one piece.
double NllOf(const std::string& profile, const EvalWindow& window) {
  const auto backend = MakeBackend(HostBackends().back());
  LoadOptions options = OptionsFor(kDemo, profile);
  options.max_rows = options.max_logit_rows = kContext;
  auto loaded = LoadModel(*backend, options);
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  const size_t vocab = static_cast<size_t>(loaded->spec.vocab_size);
  const std::vector<int32_t> ids = Text().Ids(window);
  const std::vector<float> logits =
      ModelRunner(*backend, std::move(*loaded), kContext).Forward(ids);
  double nll = 0;
  for (size_t i = static_cast<size_t>(window.first_scored); i < ids.size(); ++i) {
    const std::span<const float> row = std::span(logits).subspan((i - 1) * vocab, vocab);
    double sum = 0;
    for (const float x : row) sum += std::exp(static_cast<double>(x));
    nll += std::log(sum) - static_cast<double>(row[static_cast<size_t>(ids[i])]);
  }
  return nll;
}

class EvaluatorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (HostBackends().empty()) GTEST_SKIP() << "a device takes the place of the host";
  }
};

TEST_F(EvaluatorTest, ScoresAreOfTheWholeWindowsLogits) {
  Loaded model = Load("nf4"), reference = Load("bf16", 33);  // steps of 33: not the windows' length
  const auto evaluator = Make(model, &reference);
  for (const int64_t index : {int64_t{0}, int64_t{1}}) {
    const EvalWindow& window = Text().windows[static_cast<size_t>(index)];
    const auto score = evaluator->Score(index);
    ASSERT_TRUE(score.ok()) << score.status();
    EXPECT_EQ(score->tokens, window.scored());
    EXPECT_EQ(score->kl.size(), static_cast<size_t>(window.scored()));
    EXPECT_NEAR(score->nll, NllOf("nf4", window), 1e-3);
    EXPECT_NEAR(score->reference_nll, NllOf("bf16", window), 1e-3);
    EXPECT_GT(score->top1, window.scored() / 2);
    EXPECT_LT(score->top1, window.scored());
    EXPECT_GT(score->top5, 3 * window.scored());
    for (const float kl : score->kl) EXPECT_GE(kl, 0.0f);
  }
}

TEST_F(EvaluatorTest, AProfileBesideItselfDoesNotDiffer) {
  Loaded model = Load("nf4"), reference = Load("nf4");
  const auto evaluator = Make(model, &reference);
  const auto score = evaluator->Score(0);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_EQ(score->nll, score->reference_nll);
  EXPECT_EQ(score->top1, score->tokens);
  EXPECT_EQ(score->top5, 5 * score->tokens);
  for (const float kl : score->kl) EXPECT_EQ(kl, 0.0f);
  ProfileFacts facts;
  ASSERT_TRUE(evaluator->Measure(&facts).ok());
  EXPECT_EQ(facts.greedy_lengths, std::vector<int64_t>(3, 24));
  EXPECT_GT(facts.decode_tokens_per_second, 0);
  for (const LinearError& e : facts.linears) EXPECT_EQ(e.isolated, 0.0) << e.module;
}

// The prefix that two greedy texts have in common, generated each by itself.
TEST_F(EvaluatorTest, GreedyLengthsAreOfTextsGeneratedApart) {
  Loaded model = Load("hqq2"), reference = Load("bf16");
  ProfileFacts facts;
  ASSERT_TRUE(Make(model, &reference)->Measure(&facts).ok());
  ASSERT_EQ(facts.greedy_lengths.size(), 3u);
  ModelRunner runners[] = {{*model.backend, std::move(model.model)},
                           {*reference.backend, std::move(reference.model)}};
  std::vector<std::vector<int32_t>> windows;
  for (const EvalWindow& w : Text().windows) {
    if (w.length >= 16) windows.push_back(Text().Ids(w));
  }
  for (size_t i = 0; i < 3; ++i) {
    std::vector<int32_t> texts[2];
    for (int side = 0; side < 2; ++side) {
      ModelRunner& runner = runners[side];
      runner.Reset();
      std::vector<int32_t> next = windows[i * windows.size() / 3];
      next.resize(16);
      while (texts[side].size() < 24) {
        const std::vector<float> logits = runner.Forward(next, /*last_only=*/true);
        next = {
            static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
        texts[side].push_back(next[0]);
      }
    }
    const auto parting = std::mismatch(texts[0].begin(), texts[0].end(), texts[1].begin()).first;
    EXPECT_EQ(facts.greedy_lengths[i], parting - texts[0].begin()) << i;
  }
}

TEST_F(EvaluatorTest, WithoutAReferenceOnlyTheTextIsScored) {
  Loaded model = Load("bf16");
  const auto evaluator = Make(model, nullptr);
  const auto score = evaluator->Score(0);
  ASSERT_TRUE(score.ok()) << score.status();
  EXPECT_NEAR(score->nll, NllOf("bf16", Text().windows[0]), 1e-3);
  EXPECT_TRUE(score->kl.empty());
  ProfileFacts facts;
  ASSERT_TRUE(evaluator->Measure(&facts).ok());
  EXPECT_TRUE(facts.linears.empty() && facts.greedy_lengths.empty());
}

}  // namespace
}  // namespace quantd

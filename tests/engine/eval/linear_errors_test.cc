// LinearErrors on small models: against figures computed another way.
#include "engine/eval/linear_errors.h"

#include <gtest/gtest.h>

#include <cmath>

#include "engine/weights/loader.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::MakeBackend;
using testing_support::ModelRunner;
using testing_support::OptionsFor;
using testing_support::TempDir;
using testing_support::TinyModelOptions;
using testing_support::WriteTinyModel;

const std::vector<int32_t> kTokens = {5, 17, 3, 44, 9, 60, 21, 2};
constexpr int64_t kRows = 8;

class LinearErrorsTest : public ::testing::Test {
 protected:
  LinearErrorsTest() {
    TinyModelOptions options;
    options.hidden_size = 64;
    options.intermediate_size = 128;
    options.num_heads = 4;
    options.head_dim = 16;
    WriteTinyModel(dir_.path(), options);
  }

  ModelRunner Load(const std::string& profile) {
    auto loaded = LoadModel(*backend_, OptionsFor(dir_.path(), profile));
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return ModelRunner(*backend_, std::move(*loaded));
  }

  // Of `profile` beside bf16, over two samples.
  std::vector<LinearError> Measure(const std::string& profile) {
    ModelRunner reference = Load("bf16"), model = Load(profile);
    auto errors = LinearErrors::Create(*backend_, *model.loaded().model, kRows);
    EXPECT_TRUE(errors.ok()) << errors.status();
    for (int sample = 0; sample < 2; ++sample) {
      const LinearTap reference_tap(*backend_, kRows), tap(*backend_, kRows);
      reference.Reset();
      model.Reset();
      std::vector<int32_t> tokens = kTokens;
      std::rotate(tokens.begin(), tokens.begin() + sample, tokens.end());
      reference.Forward(tokens, false, reference_tap.observer());
      model.Forward(tokens, false, tap.observer());
      const absl::Status status = errors->Add(reference_tap, tap);
      EXPECT_TRUE(status.ok()) << status;
    }
    auto result = errors->Result();
    EXPECT_TRUE(result.ok()) << result.status();
    return *result;
  }

  static const LinearError& Find(const std::vector<LinearError>& errors, const std::string& name) {
    for (const LinearError& e : errors) {
      if (e.module == name) return e;
    }
    ADD_FAILURE() << "no " << name;
    return errors.front();
  }

  TempDir dir_;
  const std::unique_ptr<Backend> backend_ = MakeBackend("ref");
};

TEST_F(LinearErrorsTest, OfTheReferenceItselfIsNothing) {
  const std::vector<LinearError> errors = Measure("bf16");
  EXPECT_EQ(errors.size(), 2 * 7 + 1u) << "two layers and the head";
  EXPECT_EQ(errors.front().module, "model.layers.0.self_attn.q_proj");
  EXPECT_EQ(errors.back().module, "lm_head");
  for (const LinearError& e : errors) {
    EXPECT_EQ(e.isolated, 0.0) << e.module;
    EXPECT_EQ(e.accumulated, 0.0) << e.module;
    EXPECT_FALSE(e.outlier_share);
  }
}

TEST_F(LinearErrorsTest, IsolatedIsTheModulesOwnAndAccumulatedOfAllBeforeIt) {
  const std::vector<LinearError> errors = Measure("nf4");
  // Nothing quantized comes before the first module.
  for (const char* name : {"q_proj", "k_proj", "v_proj"}) {
    const LinearError& e = Find(errors, std::string("model.layers.0.self_attn.") + name);
    EXPECT_EQ(e.isolated, e.accumulated) << name;
    // Blocks of 64 normal values: about 9 % of the weights' norm, and of a sum's.
    EXPECT_GT(e.isolated, 0.05);
    EXPECT_LT(e.isolated, 0.15);
  }
  const LinearError& head = Find(errors, "lm_head");
  EXPECT_EQ(head.isolated, 0.0) << "it stays in 16 bits";
  EXPECT_GT(head.accumulated, 0.05) << "what comes to it does not";
  EXPECT_NE(Find(errors, "model.layers.1.mlp.down_proj").format, head.format);
}

TEST_F(LinearErrorsTest, FinerFormatsErrLess) {
  const auto rms = [&](const std::string& profile) {
    double squares = 0;
    for (const LinearError& e : Measure(profile)) squares += e.isolated * e.isolated;
    return std::sqrt(squares);
  };
  const double int8 = rms("int8"), nf4 = rms("nf4"), fp4 = rms("fp4"), hqq2 = rms("hqq2");
  EXPECT_LT(int8, nf4 / 4);
  EXPECT_LT(nf4, fp4);
  EXPECT_LT(fp4, hqq2);
}

TEST_F(LinearErrorsTest, OutlierShareIsCountedOnTheModulesInput) {
  const std::vector<LinearError> errors = Measure(
      "quantization: {quant_method: bitsandbytes, load_in_8bit: true, llm_int8_threshold: 1.5}");
  // The same inputs, counted by hand.
  ModelRunner reference = Load("bf16");
  int64_t outliers = 0, inputs = 0;
  const LinearObserver count = [&](const PackedWeight& w, const TensorView& x, const TensorView&) {
    if (w.segments().front().module != "model.layers.1.self_attn.q_proj") return;
    for (int64_t r = 0; r < x.rows; ++r) {
      for (int64_t c = 0; c < x.cols; ++c, ++inputs) {
        outliers += std::fabs(static_cast<float>(x.Row<BF16>(r)[c])) >= 1.5f ? 1 : 0;
      }
    }
  };
  for (int sample = 0; sample < 2; ++sample) {
    std::vector<int32_t> tokens = kTokens;
    std::rotate(tokens.begin(), tokens.begin() + sample, tokens.end());
    reference.Reset();
    reference.Forward(tokens, false, &count);
  }
  ASSERT_GT(outliers, 0);
  const LinearError& e = Find(errors, "model.layers.1.self_attn.k_proj");  // reads the same input
  ASSERT_TRUE(e.outlier_share);
  EXPECT_DOUBLE_EQ(*e.outlier_share, static_cast<double>(outliers) / static_cast<double>(inputs));
  EXPECT_FALSE(Find(errors, "lm_head").outlier_share);
}

TEST_F(LinearErrorsTest, TiedHeadIsMeasuredToo) {
  TinyModelOptions options;
  options.tie_word_embeddings = true;
  TempDir tied;
  WriteTinyModel(tied.path(), options);
  auto loaded = LoadModel(*backend_, OptionsFor(tied.path(), "bf16"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->model->linears().back()->weight->n(), options.vocab_size);
}

}  // namespace
}  // namespace quantd

// What LoadModel refuses: each broken model folder of the operations checklist gives one clear
// message before anything is allocated.
#include "engine/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "kernels/status.h"
#include "tests/engine/models/load_helpers.h"
#include "tests/engine/models/model_runner.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::FloatTensor;
using testing_support::kModels;
using testing_support::OptionsFor;
using testing_support::OwnedTensor;
using testing_support::OwnedTensors;
using testing_support::ReadFile;
using testing_support::ReadTensors;
using testing_support::TempDir;
using testing_support::TryLoad;
using testing_support::WriteFile;
using testing_support::WriteTensors;
using testing_support::WriteTinyModel;

// ---- broken folders
// -----------------------------------------------------------------------------------

// Replaces `from` by `to` in a folder's config.json.
std::function<void(const std::filesystem::path&)> Config(const std::string& from,
                                                         const std::string& to) {
  return [=](const std::filesystem::path& dir) {
    std::string config = ReadFile(dir / "config.json");
    const size_t at = config.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    config.replace(at, from.size(), to);
    WriteFile(dir / "config.json", config);
  };
}

std::function<void(const std::filesystem::path&)> Tensors(
    const std::function<void(OwnedTensors&)>& change) {
  return [=](const std::filesystem::path& dir) {
    OwnedTensors tensors = ReadTensors(dir / "model.safetensors");
    change(tensors);
    WriteTensors(dir / "model.safetensors", tensors);
  };
}

struct Broken {
  const char* what;
  std::function<void(const std::filesystem::path&)> damage;
  absl::StatusCode code;
  std::vector<std::string> messages;
};

constexpr auto kLoss = absl::StatusCode::kDataLoss;
constexpr auto kNotSupported = absl::StatusCode::kUnimplemented;

void ExpectRefused(const std::vector<Broken>& table,
                   const std::function<void(const std::filesystem::path&)>& make) {
  for (const Broken& b : table) {
    TempDir dir;
    make(dir.path());
    ASSERT_TRUE(LoadModel(*CreateRefBackend(), OptionsFor(dir.path())).ok());
    b.damage(dir.path());
    const absl::Status status = TryLoad(OptionsFor(dir.path()));
    EXPECT_EQ(status.code(), b.code) << b.what << ": " << status;
    for (const std::string& message : b.messages)
      EXPECT_THAT(Message(status), HasSubstr(message)) << b.what;
  }
}

TEST(LoadModel, RefusesBrokenConfigs) {
  const std::vector<Broken> table = {
      {"no config",
       [](const auto& d) { std::filesystem::remove(d / "config.json"); },
       absl::StatusCode::kNotFound,
       {"config.json: no such file"}},
      {"not JSON",
       [](const auto& d) { WriteFile(d / "config.json", "{"); },
       kLoss,
       {"config.json: not valid JSON"}},
      {"a list",
       [](const auto& d) { WriteFile(d / "config.json", "[]"); },
       kLoss,
       {"config.json: not a JSON object"}},
      {"key twice",
       Config("\"hidden_size\": 32", "\"hidden_size\": 32, \"hidden_size\": 64"),
       kLoss,
       {"\"hidden_size\" occurs twice"}},
      {"deep",
       [](const auto& d) { WriteFile(d / "config.json", std::string(100000, '[')); },
       kLoss,
       {"nested deeper than"}},
      {"not UTF-8", Config("\"silu\"", "\"\xff\""), kLoss, {"not valid JSON"}},
      {"hidden_size 0",
       Config("\"hidden_size\": 32", "\"hidden_size\": 0"),
       kLoss,
       {"config.json: hidden_size: 0 must be positive"}},
      {"hidden_size missing", Config("\"hidden_size\": 32,", ""), kLoss, {"hidden_size: missing"}},
      {"hidden_size huge",
       Config("\"hidden_size\": 32", "\"hidden_size\": 99999999999999999999"),
       kLoss,
       {"hidden_size: "}},
      {"hidden_size text",
       Config("\"hidden_size\": 32", "\"hidden_size\": \"32\""),
       kLoss,
       {"hidden_size: \"32\" is not an integer"}},
      {"layers",
       Config("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1000000000"),
       kLoss,
       {"num_hidden_layers: 1000000000 is not between 1 and 4096"}},
      {"heads do not divide",
       Config("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
       kLoss,
       {"num_attention_heads: 4 is not a multiple of num_key_value_heads 3"}},
      {"odd head_dim", Config("\"head_dim\": 8", "\"head_dim\": 7"), kLoss, {"head_dim: 7 is odd"}},
      {"all at once",
       Config("\"vocab_size\": 64, \"hidden_size\": 32", "\"vocab_size\": -1, \"hidden_size\": 0"),
       kLoss,
       {"vocab_size: -1 must be positive; hidden_size: 0 must be positive"}},
      {"eps", Config("1e-05", "0"), kLoss, {"rms_norm_eps: 0 is not above 0"}},
      {"activation",
       Config("\"silu\"", "\"gelu\""),
       kNotSupported,
       {"hidden_act: \"gelu\" is not supported; supported: silu, gelu_pytorch_tanh"}},
      {"rope type",
       Config("\"rope_type\": \"default\"", "\"rope_type\": \"proportional\""),
       kNotSupported,
       {"rope_parameters.rope_type: \"proportional\" is not supported; supported: default, linear, "
        "dynamic, llama3, yarn, longrope"}},
      {"rope by layer",
       Config("\"rope_parameters\": {", "\"rope_parameters\": {\"full_attention\": {}, "),
       kNotSupported,
       {"rope_parameters: not supported by layer type for this architecture"}},
      {"longrope without factors",
       Config("\"rope_type\": \"default\"",
              "\"rope_type\": \"longrope\", \"short_factor\": [1, 2, -1]"),
       kLoss,
       {"rope_parameters.short_factor: -1 is not a number above 0",
        "rope_parameters.long_factor: missing is not a list of numbers"}},
      {"longrope of other pairs",
       Config("\"rope_type\": \"default\"",
              "\"rope_type\": \"su\", \"short_factor\": [1, 2, 3], \"long_factor\": [1, 2, 3, 4]"),
       kLoss,
       {"longrope: 3 short and 4 long factors for 4 pairs of a head"}},
      {"yarn beyond all contexts",
       Config("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\", \"factor\": 1e9"),
       kLoss,
       {"rope: original_max_position_embeddings 128 times factor 1000000000 is above"}},
      {"partial rotation of odd size",
       Config("\"rope_type\": \"default\"",
              "\"rope_type\": \"default\", \"partial_rotary_factor\": 0.4"),
       kLoss,
       {"partial_rotary_factor: 0.4 of a head of 8 are 3 elements, and rope rotates pairs"}},
      {"llama3 rope without factors",
       Config("\"rope_type\": \"default\"", "\"rope_type\": \"llama3\", \"factor\": 0.5"),
       kLoss,
       {"factor: 0.5 is below 1", "low_freq_factor: missing"}},
      {"rope theta",
       Config("\"rope_theta\": 10000.0", "\"rope_theta\": -1"),
       kLoss,
       {"rope_theta: -1 is not a number above 0"}},
      {"architecture",
       Config("LlamaForCausalLM", "MambaForCausalLM"),
       kNotSupported,
       {"architecture \"MambaForCausalLM\" is not supported; supported: LlamaForCausalLM, "
        "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, "
        "Gemma2ForCausalLM, Gemma3ForCausalLM"}},
      {"mixture of experts",
       Config("LlamaForCausalLM", "Qwen3MoeForCausalLM"),
       kNotSupported,
       {"architecture \"Qwen3MoeForCausalLM\" is not supported: a mixture of experts, which "
        "quantd's decoder does not take; supported: LlamaForCausalLM, "}},
      {"multimodal",
       Config("LlamaForCausalLM", "Gemma3ForConditionalGeneration"),
       kNotSupported,
       {"is not supported: it takes more than text; of Gemma 3 the text models are supported"}},
      {"dtype",
       Config("\"dtype\": \"bfloat16\"", "\"dtype\": \"float8\""),
       kNotSupported,
       {"dtype: \"float8\""}},
      {"eos beyond the vocabulary",
       Config("\"eos_token_id\": [2]", "\"eos_token_id\": [2, 64]"),
       kLoss,
       {"eos_token_id: 64 is not a token id below 64"}},
      {"vocab mismatch",
       Config("\"vocab_size\": 64", "\"vocab_size\": 65"),
       kLoss,
       {"tensor model.embed_tokens.weight: shape [64, 32], config.json says [65, 32]",
        "tensor lm_head.weight: shape [64, 32], config.json says [65, 32]"}},
      {"foreign quantization",
       Config("\"dtype\"", "\"quantization_config\": {\"quant_method\": \"quanto\"}, \"dtype\""),
       kNotSupported,
       {"config.json: quantization_config.quant_method: \"quanto\" (optimum-quanto's tensors"}},
      {"quantization_config of another type",
       Config("\"dtype\"", "\"quantization_config\": 4, \"dtype\""),
       kLoss,
       {"quantization_config is not an object"}},
      {"generation_config",
       [](const auto& d) {
         WriteFile(d / "generation_config.json", R"({"do_sample": true, "top_p": 2})");
       },
       kLoss,
       {"generation_config.json: top_p: 2 is not above 0 and at most 1"}},
  };
  ExpectRefused(table, [](const auto& dir) { WriteTinyModel(dir); });
}

TEST(LoadModel, RefusesBrokenWeights) {
  const std::string up = "model.layers.1.mlp.up_proj.weight";
  const std::vector<Broken> table = {
      {"no weights",
       [](const auto& d) { std::filesystem::remove(d / "model.safetensors"); },
       absl::StatusCode::kNotFound,
       {"neither model.safetensors nor"}},
      {"truncated",
       [](const auto& d) {
         std::filesystem::resize_file(d / "model.safetensors",
                                      std::filesystem::file_size(d / "model.safetensors") - 1);
       },
       kLoss,
       {"model.safetensors", "truncated"}},
      {"trailing",
       [](const auto& d) {
         std::filesystem::resize_file(d / "model.safetensors",
                                      std::filesystem::file_size(d / "model.safetensors") + 1);
       },
       kLoss,
       {"1 bytes follow the last tensor"}},
      {"empty file",
       [](const auto& d) { WriteFile(d / "model.safetensors", ""); },
       kLoss,
       {"too short"}},
      {"missing",
       Tensors([=](OwnedTensors& t) { t.erase(up); }),
       kLoss,
       {"tensor " + up + " [48, 32] is missing"}},
      {"extra",
       Tensors([](OwnedTensors& t) { t["model.extra"] = FloatTensor({1}, {1}, DType::kF32); }),
       kLoss,
       {"tensor \"model.extra\" (F32 [1]) is not part of the model"}},
      {"transposed",
       Tensors([=](OwnedTensors& t) {
         t[up].shape = {32, 48};
       }),
       kLoss,
       {"tensor " + up + ": shape [32, 48], config.json says [48, 32]"}},
      {"integers",
       Tensors([=](OwnedTensors& t) { t[up].dtype = StoredDType::kI16; }),
       kLoss,
       {up + ": dtype I16 is not one of F32, F16, BF16"}},
      {"several",
       Tensors([=](OwnedTensors& t) {
         t.erase(up);
         t["model.norm.weight"].shape = {1, 32};
         t["a"] = FloatTensor({1}, {1}, DType::kF32);
       }),
       kLoss,
       {up, "model.norm.weight: shape [1, 32]", "tensor \"a\" "}},
      {"NaN",
       Tensors([=](OwnedTensors& t) { t[up].bytes.replace(2 * (32 * 3 + 5), 2, "\xc0\x7f"); }),
       kLoss,
       {"tensor " + up + ": element [3, 5] is NaN or infinite"}},
      {"infinity in a norm",
       Tensors([](OwnedTensors& t) {
         t["model.norm.weight"].bytes.replace(4, 2, std::string("\x80\xff", 2));
       }),
       kLoss,
       {"tensor model.norm.weight: element [0, 2] is NaN or infinite"}},
      // Also what comes after the first one, which ended the packing.
      {"values of two modules and a norm",
       Tensors([=](OwnedTensors& t) {
         t["model.layers.0.self_attn.k_proj.weight"].bytes.replace(0, 2, "\xc0\x7f");
         t[up].bytes.replace(2 * (32 * 3 + 5), 2, "\xc0\x7f");
         t["model.norm.weight"].bytes.replace(4, 2, std::string("\x80\xff", 2));
       }),
       kLoss,
       {"model.layers.0.self_attn.k_proj: model.safetensors: tensor "
        "model.layers.0.self_attn.k_proj.weight: element [0, 0] is NaN or infinite; "
        "model.layers.1.mlp.up_proj: model.safetensors: tensor " +
        up +
        ": element [3, 5] is NaN or infinite; model.safetensors: tensor model.norm.weight: element "
        "[0, 2] is"}},
      {"quantized without a config",
       Tensors([](OwnedTensors& t) {
         t["model.layers.0.mlp.up_proj.weight"] = {
             StoredDType::kI8, {48, 32}, std::string(48 * 32, '\1')};
         t["model.layers.0.mlp.up_proj.SCB"] =
             FloatTensor(std::vector<float>(48, 1.0f), {48}, DType::kF32);
       }),
       kLoss,
       {"is stored as bitsandbytes, but config.json has no quantization_config"}},
  };
  ExpectRefused(table, [](const auto& dir) { WriteTinyModel(dir); });
}

// A bias is looked at beside the weights it belongs to, also when those are faulty.
TEST(LoadModel, NamesFaultyBiases) {
  TempDir dir;
  testing_support::TinyModelOptions options;
  options.attention_bias = true;
  WriteTinyModel(dir.path(), options);
  OwnedTensors t = ReadTensors(dir.path() / "model.safetensors");
  const std::string k = "model.layers.0.self_attn.k_proj", v = "model.layers.1.self_attn.v_proj";
  t.at(k + ".weight").bytes.replace(0, 2, "\xc0\x7f");
  t.at(k + ".bias").bytes.replace(2, 2, "\xc0\x7f");
  t.at(v + ".bias").bytes.replace(4, 2, "\xc0\x7f");
  WriteTensors(dir.path() / "model.safetensors", t);
  const absl::Status status = TryLoad(OptionsFor(dir.path()));
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  for (const std::string& fault :
       {k + ".weight: element [0, 0]", k + ".bias: element [0, 1]", v + ".bias: element [0, 2]"}) {
    EXPECT_THAT(Message(status), HasSubstr(fault));
  }
}

TEST(LoadModel, ListsAtMostTwentyFaults) {
  TempDir dir;
  WriteTinyModel(dir.path());
  WriteTensors(dir.path() / "model.safetensors", {{"x", FloatTensor({1}, {1}, DType::kF32)}});
  const absl::Status status = TryLoad(OptionsFor(dir.path()));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(Message(status),
              HasSubstr("; and 2 more"));  // 18 of two layers, 3 others, 1 unexpected
}

void CopyFixture(const std::string& name, const std::filesystem::path& dir) {
  for (const char* file : {"config.json", "model.safetensors"})
    std::filesystem::copy_file(kModels / name / file, dir / file);
}

const std::string kProj = "model.layers.0.self_attn.q_proj";

// Changes the JSON of a quant_state without changing its length.
std::function<void(const std::filesystem::path&)> State(const std::string& from,
                                                        const std::string& to) {
  return Tensors([=](OwnedTensors& t) {
    OwnedTensor& state = t.at(kProj + ".weight.quant_state.bitsandbytes__nf4");
    const size_t at = state.bytes.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    state.bytes.replace(at, from.size(), to);
    state.shape = {static_cast<int64_t>(state.bytes.size())};
  });
}

TEST(LoadModel, RefusesBroken4BitCheckpoints) {
  const std::string w = kProj + ".weight";
  const std::string state = w + ".quant_state.bitsandbytes__nf4";
  const auto float_at = [](OwnedTensor& t, size_t i, float v) {
    std::memcpy(t.bytes.data() + 4 * i, &v, 4);
  };
  const std::vector<Broken> table = {
      {"no state",
       Tensors([=](OwnedTensors& t) { t.erase(state); }),
       kLoss,
       {"quant_state.bitsandbytes__<type> is missing"}},
      {"no codes",
       Tensors([=](OwnedTensors& t) { t.erase(w); }),
       kLoss,
       {"tensor " + w + " is missing"}},
      {"no map",
       Tensors([=](OwnedTensors& t) { t.erase(w + ".quant_map"); }),
       kLoss,
       {w + ".quant_map is missing"}},
      {"another map",
       Tensors([=](OwnedTensors& t) { float_at(t.at(w + ".quant_map"), 3, -0.4f); }),
       kNotSupported,
       {w + ".quant_map: entry 3 is -0.4, bitsandbytes' nf4 table has -0.3949175"}},
      {"few codes",
       Tensors([=](OwnedTensors& t) {
         t.at(w).bytes.pop_back();
         t.at(w).shape[0] -= 1;
       }),
       kLoss,
       {w, "takes 16384"}},
      {"few nested scales",
       Tensors([=](OwnedTensors& t) {
         t.at(w + ".nested_absmax") = FloatTensor({1, 2, 3}, {3}, DType::kF32);
       }),
       kLoss,
       {w + ".nested_absmax: F32 [3], expected F32 [2]"}},
      {"negative scale",
       Tensors([=](OwnedTensors& t) { float_at(t.at(w + ".nested_absmax"), 1, -1.0f); }),
       kLoss,
       {w + ".nested_absmax: element 1 is -1"}},
      {"NaN scale",
       Tensors([=](OwnedTensors& t) { float_at(t.at(w + ".nested_absmax"), 0, NAN); }),
       kLoss,
       {w + ".nested_absmax: element 0 is nan"}},
      {"values of two modules and a norm",
       Tensors([=](OwnedTensors& t) {
         const std::string down = "model.layers.0.mlp.down_proj.weight";
         float_at(t.at(w + ".nested_absmax"), 1, -1.0f);
         float_at(t.at(down + ".nested_quant_map"), 2, NAN);
         t.at("model.norm.weight").bytes.replace(2, 2, "\xc0\x7f");
       }),
       kLoss,
       {kProj + ": tensor " + w + ".nested_absmax: element 1 is -1",
        "; model.layers.0.mlp.down_proj: tensor model.layers.0.mlp.down_proj.weight."
        "nested_quant_map: element 2 is nan; model.safetensors: tensor model.norm.weight: element "
        "[0, 1] is NaN"}},
      {"NaN in the nested map",
       Tensors([=](OwnedTensors& t) { float_at(t.at(w + ".nested_quant_map"), 9, NAN); }),
       kLoss,
       {"nested_quant_map: element 9 is nan"}},
      {"unknown companion",
       Tensors([=](OwnedTensors& t) { t[w + ".zero"] = FloatTensor({1}, {1}, DType::kF32); }),
       kLoss,
       {"tensor \"" + w + ".zero\" (F32 [1]) is not part of the model"}},
      {"state not JSON", State("{", "["), kLoss, {state + ": not valid JSON"}},
      {"state of another type",
       State("\"nf4\"", "\"fp4\""),
       kLoss,
       {state + ": quant_type is fp4"}},
      {"state of an unknown type",
       State("\"nf4\"", "\"nf5\""),
       kNotSupported,
       {"quant_type \"nf5\" is not supported; supported: nf4, fp4"}},
      {"block size",
       State("\"blocksize\": 64", "\"blocksize\": 65"),
       kLoss,
       {"blocksize is 65, not a power of two"}},
      {"block size 0",
       State("\"blocksize\": 64", "\"blocksize\": 0"),
       kLoss,
       {"blocksize is 0, not a power of two"}},
      {"shape",
       State("[256, 128]", "[128, 256]"),
       kLoss,
       {"shape is [128,256], config.json says [256, 128]"}},
      {"nested block",
       State("\"nested_blocksize\": 256", "\"nested_blocksize\": 128"),
       kNotSupported,
       {"nested_blocksize 128"}},
      {"nested dtype",
       State("\"float32\"", "\"float64\""),
       kNotSupported,
       {"nested_dtype \"float64\""}},
      {"config of another type",
       Config("\"nf4\"", "\"fp4\""),
       kLoss,
       {"is stored as nf4 with double quantization, config.json says fp4 with double "
        "quantization"}},
      {"config without double quantization",
       Config("\"bnb_4bit_use_double_quant\": true", "\"bnb_4bit_use_double_quant\": false"),
       kLoss,
       {"is stored as nf4 with double quantization, config.json says nf4"}},
      {"config of the other width",
       Config("\"_load_in_4bit\": true,\n    \"_load_in_8bit\": false",
              "\"_load_in_4bit\": false,\n    \"_load_in_8bit\": true"),
       kLoss,
       {"contradicts load_in_4bit", "contradicts load_in_8bit"}},
  };
  ExpectRefused(table, [](const auto& dir) { CopyFixture("bnb_nf4_dq", dir); });
}

TEST(LoadModel, RefusesBroken8BitCheckpoints) {
  const std::vector<Broken> table = {
      {"codes of another shape",
       Tensors([](OwnedTensors& t) {
         t.at(kProj + ".weight").shape = {128, 256};
       }),
       kLoss,
       {kProj + ".weight: I8 [128, 256], expected I8 [256, 128]"}},
      {"no scales",
       Tensors([](OwnedTensors& t) { t.erase(kProj + ".SCB"); }),
       kLoss,
       {kProj + ".weight: dtype I8"}},
      {"few scales",
       Tensors([](OwnedTensors& t) { t.at(kProj + ".SCB") = FloatTensor({1}, {1}, DType::kF32); }),
       kLoss,
       {kProj + ".SCB: F32 [1], expected F32 [256]"}},
      {"infinite scale",
       Tensors([](OwnedTensors& t) {
         const float inf = INFINITY;
         std::memcpy(t.at(kProj + ".SCB").bytes.data(), &inf, 4);
       }),
       kLoss,
       {kProj + ".SCB: element 0 is inf"}},
      {"code -128",
       Tensors([](OwnedTensors& t) { t.at(kProj + ".weight").bytes[9] = '\x80'; }),
       kLoss,
       {"a code is -128"}},
      {"other row order",
       Tensors([](OwnedTensors& t) { t.at(kProj + ".weight_format").bytes[0] = 1; }),
       kNotSupported,
       {kProj + ".weight_format: 1 is not supported; supported: 0"}},
      {"fp16 weights kept",
       Config("\"llm_int8_has_fp16_weight\": false", "\"llm_int8_has_fp16_weight\": true"),
       kNotSupported,
       {"config.json: quantization_config.llm_int8_has_fp16_weight: true is not supported"}},
  };
  ExpectRefused(table, [](const auto& dir) { CopyFixture("bnb_int8", dir); });
}

}  // namespace
}  // namespace quantd

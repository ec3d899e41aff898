// Validate: each fault by itself, with its place and its fix, and many at once.
#include "server/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

namespace fs = std::filesystem;
namespace tiny = testing_support;
using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Severity = Finding::Severity;

constexpr Severity kError = Severity::kError, kWarning = Severity::kWarning;
constexpr char kWeights[] = "model.safetensors";

tiny::TinyModelOptions Shape() {
  tiny::TinyModelOptions shape;
  shape.vocab_size = 4096;  // of the demo model's tokenizer
  shape.hidden_size = 64;
  shape.intermediate_size = 128;
  shape.num_heads = 2;
  shape.num_kv_heads = 1;
  shape.head_dim = 32;
  return shape;
}

// A model folder and a configuration in which nothing is wrong, to be damaged.
struct Deployment {
  tiny::TempDir dir;
  fs::path model = dir.path() / "model";
  std::string yaml;  // of server.yaml, behind its model and backend
  ValidateOptions options;

  Deployment() {
    fs::create_directory(model);
    WriteModel(Shape());
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      fs::copy_file(fs::path(QUANTD_SOURCE_DIR) / "demo/model" / name, model / name);
    }
  }
  void WriteModel(const tiny::TinyModelOptions& shape) { tiny::WriteTinyModel(model, shape); }
  // A fixture of tests/data in place of the model, with the tokenizer that is there.
  void TakeFixture(const std::string& name) {
    for (const char* file : {"config.json", kWeights}) {
      fs::copy_file(fs::path(QUANTD_TEST_DATA) / "models" / name / file, model / file,
                    fs::copy_options::overwrite_existing);
    }
    fs::remove(model / "tokenizer.json");
  }
  void Remove(const std::vector<std::string>& tensors) {
    auto all = tiny::ReadTensors(model / kWeights);
    for (const std::string& name : tensors) all.erase(name);
    tiny::WriteTensors(model / kWeights, all);
  }
  void Set(const std::string& assignment) { options.overrides.push_back(assignment); }
  // A profile of this text, chosen.
  void Profile(const std::string& text) {
    tiny::WriteFile(dir.path() / "own.yaml", text);
    Set("profile=" + (dir.path() / "own.yaml").string());
  }
  void Cuda(int64_t memory) {
    Set("backend=cuda");
    options.memory_bytes = memory;
  }
  std::vector<Finding> Run() {
    options.config = (dir.path() / "server.yaml").string();
    tiny::WriteFile(options.config, "model: " + model.string() + "\nbackend: cpu\n" + yaml);
    return Validate(options);
  }
};

std::string Text(const std::vector<Finding>& findings) {
  std::string text;
  for (const Finding& f : findings) {
    text += fmt::format("{}: {}: {} [{}]\n", f.severity == kError ? "error" : "warning", f.where,
                        f.what, f.fix);
  }
  return text;
}

auto IsFinding(Severity severity, const std::string& where, const std::string& what,
               const std::string& fix) {
  return AllOf(Field(&Finding::severity, severity), Field(&Finding::where, HasSubstr(where)),
               Field(&Finding::what, HasSubstr(what)), Field(&Finding::fix, HasSubstr(fix)));
}

constexpr int64_t kGigabyte = 1'000'000'000;

struct Case {
  const char* name;
  std::function<void(Deployment&)> damage;
  Severity severity;
  const char* where;
  const char* what;
  const char* fix;
};

const std::vector<Case>& Cases() {
  static const std::vector<Case> cases = {
      // The configuration.
      {"UnknownKey", [](Deployment& s) { s.yaml = "limits: {max_queue_requests: 3}"; }, kError,
       "server.yaml", "unknown key limits.max_queue_requests",
       "the nearest known key is limits.max_queued_requests"},
      {"WrongValue", [](Deployment& s) { s.yaml = "threads: two"; }, kError, "server.yaml",
       "threads: \"two\" is not allowed", "allowed: an integer in [0, 1024]"},
      {"WrongOverride", [](Deployment& s) { s.Set("kv.blok_size=16"); }, kError, "--set",
       "unknown key kv.blok_size", "the nearest known key is kv.block_size"},
      {"FewerTokensThanSequences",
       [](Deployment& s) { s.yaml = "scheduler: {max_num_seqs: 64, max_num_batched_tokens: 32}"; },
       kError, "server.yaml", "32 is less than scheduler.max_num_seqs", "allowed: 64 or more"},
      {"ContextBeyondTheModels", [](Deployment& s) { s.Set("scheduler.max_model_len=129"); },
       kError, "server.yaml", "scheduler.max_model_len is 129", "allowed: 0 (the model's) to 128"},
      {"NoFolder", [](Deployment& s) { fs::remove_all(s.model); }, kError, "model",
       "is not a folder", "config.json"},
      // Who may come in.
      {"NoKeyFile", [](Deployment& s) { s.Set("security.api_keys=/none"); }, kError,
       "security.api_keys", "/none", "quantd keys"},
      {"NoCertificate",
       [](Deployment& s) {
         s.Set("tls.certificate=/none");
         s.Set("tls.key=/none");
       },
       kError, "tls", "tls.certificate /none", "in PEM files"},
      {"OpenToEverybody", [](Deployment& s) { s.Set("listen.grpc=0.0.0.0:50051"); }, kWarning,
       "listen.grpc", "0.0.0.0:50051 is open to everybody", "security.api_keys"},
      {"AdminPortOpenToEverybody", [](Deployment& s) { s.Set("listen.admin=[::]:50052"); },
       kWarning, "listen.admin", "without a key", "127.0.0.1"},
      // The profile.
      {"NoSuchProfile", [](Deployment& s) { s.Set("profile=nf5"); }, kError, "profile",
       "no profile \"nf5\"", "the nearest known one is nf4"},
      {"NoSuchProfileFile", [](Deployment& s) { s.Set("profile=/no/such.yaml"); }, kError,
       "/no/such.yaml", "no such file", "quantd profiles"},
      {"WrongProfileValue",
       [](Deployment& s) {
         s.Profile(
             "quantization: {quant_method: bitsandbytes, load_in_4bit: true, "
             "bnb_4bit_quant_type: nf3}");
       },
       kError, "own.yaml", "bnb_4bit_quant_type: \"nf3\"", "nf4, fp4"},
      {"GroupSizeThatDoesNotDivide",
       [](Deployment& s) {
         s.Profile("quantization: {quant_method: hqq, nbits: 4, group_size: 96, axis: 1}");
       },
       kError, "own.yaml", "is not a multiple of group_size 96 (2 times)",
       "group_size: 64 divides the weights of this model"},
      {"EmbeddingThatIsQuantized",
       [](Deployment& s) {
         s.Profile(
             "quantization: {quant_method: none}\noverrides:\n  - {match: embed_tokens, "
             "quantization: {quant_method: bitsandbytes, load_in_8bit: true}}");
       },
       kError, "own.yaml", "an embedding cannot be quantized",
       "profiles that suit the model: fp32,"},
      {"OverrideOfNothing",
       [](Deployment& s) {
         s.Profile(
             "quantization: {quant_method: none}\noverrides:\n  - {match: mlp.upproj, "
             "quantization: {quant_method: none}}");
       },
       kWarning, "own.yaml", "overrides[0].match: \"mlp.upproj\" matches no module",
       "model.layers.1.mlp.down_proj"},
      {"AnotherProfileThanTheCheckpoints",
       [](Deployment& s) {
         s.TakeFixture("gptq4_sym");
         s.Set("profile=nf4");
       },
       kError, "nf4", "the checkpoint is quantized already", "load it without a profile"},
      {"ProfileIgnoredInPart",
       [](Deployment& s) {
         s.TakeFixture("gptq4_sym");
         s.Profile("kv_cache: {dtype: int8}");
       },
       kWarning, "own.yaml", "only dtype, kv_cache and engine count", "no profile"},
      {"RoundingToFloat16", [](Deployment& s) { s.Set("profile=fp16"); }, kWarning, "fp16",
       "stored as bfloat16 are rounded to float16", "dtype: bfloat16"},
      // The model folder.
      {"NoConfig", [](Deployment& s) { fs::remove(s.model / "config.json"); }, kError,
       "model/config.json", "no such file", "fetch the model folder again"},
      {"ConfigThatIsNoJson", [](Deployment& s) { tiny::WriteFile(s.model / "config.json", "{"); },
       kError, "model/config.json", "JSON", "fetch the model folder again"},
      {"OtherArchitecture",
       [](Deployment& s) {
         tiny::WriteFile(s.model / "config.json", R"({"architectures": ["MixtralForCausalLM"]})");
       },
       kError, "model/config.json", "a mixture of experts", "supported: LlamaForCausalLM"},
      {"BrokenGenerationConfig",
       [](Deployment& s) {
         tiny::WriteFile(s.model / "generation_config.json", R"({"repetition_penalty": -1})");
       },
       kError, "model/generation_config.json", "repetition_penalty: -1", "defaults"},
      {"NoWeights", [](Deployment& s) { fs::remove(s.model / kWeights); }, kError, "model",
       "neither model.safetensors", "fetch the model folder again"},
      {"WeightsCutShort",
       [](Deployment& s) {
         fs::resize_file(s.model / kWeights, fs::file_size(s.model / kWeights) / 2);
       },
       kError, "model/model.safetensors", "truncated", "fetch the model folder again"},
      {"TensorsOfEveryLayerMissing",
       [](Deployment& s) {
         s.Remove({"model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"});
       },
       kError, "model", "tensor model.layers.*.mlp.up_proj.weight [128, 64] is missing (2 times)",
       "fetch the model folder again"},
      {"NoTokenizer", [](Deployment& s) { fs::remove(s.model / "tokenizer.json"); }, kError,
       "model/tokenizer.json", "no such file", "tokenizer.model"},
      {"TokenizerOfALargerModel",
       [](Deployment& s) {
         auto shape = Shape();
         shape.vocab_size = 4000;
         s.WriteModel(shape);
       },
       kError, "model", "ids up to 4095, but config.json's vocab_size is 4000", "published with"},
      {"ChatTemplateThatIsNone",
       [](Deployment& s) { tiny::WriteFile(s.model / "chat_template.jinja", "{% if %}"); },
       kWarning, "model/chat_template.jinja", "requests with messages will be refused",
       "chat_template.jinja"},
      {"NoEndOfSequence",
       [](Deployment& s) {
         auto shape = Shape();
         shape.eos_token_ids = {};
         s.WriteModel(shape);
       },
       kWarning, "model/config.json", "no eos_token_id", "add it"},
      // The device.
      {"TooLittleMemory", [](Deployment& s) { s.Cuda(30'000'000); }, kError, "memory",
       "under checkpoint it would take", "what would fit: "},
      {"TooLittleMemoryForAny",
       [](Deployment& s) {
         s.Cuda(1'000'000);
         s.Set("profile=auto");
       },
       kError, "memory", "nothing fits: ", "shorter contexts take less"},
      {"KvCacheThatDoesNotFit",
       [](Deployment& s) {
         s.Cuda(kGigabyte);
         s.Set("kv.cache_bytes=2GiB");
       },
       kError, "memory", "KV cache 2.15 GB", "a KV cache of"},
      {"KvCacheOfLessThanABlock", [](Deployment& s) { s.Set("kv.cache_bytes=1"); }, kError,
       "server.yaml", "kv_cache_bytes is 1", "two blocks of 16 tokens"},
      {"KvCacheBelowTheContext", [](Deployment& s) { s.Set("kv.num_blocks=2"); }, kWarning,
       "server.yaml", "the cache holds 32 tokens, the context is 128",
       "scheduler.max_model_len: 32, or kv.cache_bytes: "},
      {"Float32OnCuda",
       [](Deployment& s) {
         s.Cuda(kGigabyte);
         s.Set("profile=fp32");
       },
       kWarning, "backend cuda", "dtype float32", "dtype: bfloat16"},
      {"HeadSizeWithoutATensorCoreKernel",
       [](Deployment& s) {
         s.Cuda(kGigabyte);
         auto shape = Shape();
         shape.head_dim = 80;
         s.WriteModel(shape);
       },
       kWarning, "backend cuda", "head_dim 80", "another model"},
      {"KvCacheOfAnotherDtypeOnCuda",
       [](Deployment& s) {
         s.Cuda(kGigabyte);
         s.Profile("kv_cache: {dtype: float32}");
       },
       kWarning, "backend cuda", "kv_cache.dtype float32", "dtype: auto"},
  };
  return cases;
}

class ValidateCase : public ::testing::TestWithParam<size_t> {};

TEST_P(ValidateCase, IsFoundAlone) {
  const Case& c = Cases()[GetParam()];
  Deployment deployment;
  c.damage(deployment);
  const std::vector<Finding> findings = deployment.Run();
  EXPECT_THAT(findings, Contains(IsFinding(c.severity, c.where, c.what, c.fix))) << Text(findings);
  EXPECT_THAT(findings, Each(Field(&Finding::fix, Not(IsEmpty())))) << Text(findings);
  const bool refused = std::any_of(findings.begin(), findings.end(),
                                   [](const Finding& f) { return f.severity == kError; });
  // A fixture has no tokenizer, which is an error of its own.
  if (fs::exists(deployment.model / "tokenizer.json")) {
    EXPECT_EQ(refused, c.severity == kError) << Text(findings);
  }
}

INSTANTIATE_TEST_SUITE_P(All, ValidateCase, ::testing::Range(size_t{0}, Cases().size()),
                         [](const auto& param) { return Cases()[param.param].name; });

TEST(Validate, NothingIsFoundWhereNothingIsWrong) {
  for (const char* profile : {"", "auto", "nf4", "int8"}) {
    for (const bool cuda : {false, true}) {
      Deployment deployment;
      deployment.Set(std::string("profile=") + profile);
      if (cuda) deployment.Cuda(kGigabyte);
      std::vector<Finding> findings = deployment.Run();
      // A build without cuda says so.
      std::erase_if(findings, [](const Finding& f) { return f.where == "backend"; });
      EXPECT_THAT(findings, IsEmpty()) << Text(findings);
    }
  }
}

TEST(Validate, WithoutAFileTheOverridesAreEnough) {
  ValidateOptions options;
  options.overrides = {"model=" QUANTD_SOURCE_DIR "/demo/model", "profile=nf4-dq", "backend=ref"};
  EXPECT_THAT(Validate(options), IsEmpty());
  options.overrides = {"backend=ref"};
  EXPECT_THAT(Validate(options),
              Contains(IsFinding(kError, "server configuration", "model: empty", "")));
}

TEST(Validate, AMissingConfigurationDoesNotHideTheRest) {
  Deployment deployment;
  deployment.options.config = "/no/such/server.yaml";
  deployment.options.overrides = {"model=" + deployment.model.string(), "profile=nf5"};
  const auto findings = Validate(deployment.options);
  EXPECT_THAT(findings, Contains(IsFinding(kError, "/no/such/server.yaml", "cannot be read", "")));
  EXPECT_THAT(findings, Contains(IsFinding(kError, "profile", "nf5", "nf4")));
  deployment.options.overrides = {"profile=nf4"};  // the model, too, may be named in the file
  EXPECT_THAT(Validate(deployment.options),
              ElementsAre(IsFinding(kError, "/no/such/server.yaml", "cannot be read", "")));
}

TEST(Validate, WithoutTheDeviceAllButItsMemoryIsChecked) {
  Deployment deployment;
  deployment.Set("backend=cuda");
  deployment.Set("profile=fp32");
  deployment.Set("scheduler.max_model_len=1000");
  const auto findings = deployment.Run();
  EXPECT_THAT(findings, Contains(IsFinding(kError, "server.yaml", "max_model_len is 1000", "128")));
  EXPECT_THAT(findings, Contains(IsFinding(kWarning, "backend cuda", "float32", "bfloat16")));
  const auto unchecked = IsFinding(kWarning, "backend", "the memory was not checked", "--memory");
  if (!fs::exists("/dev/nvidiactl")) {
    EXPECT_THAT(findings, Contains(unchecked));
  }
  EXPECT_THAT(findings, Not(Contains(Field(&Finding::where, std::string("memory")))));
}

TEST(Validate, EverythingComesAtOnceErrorsFirst) {
  Deployment deployment;
  deployment.yaml = "modle: x\nthreads: two\nkv: {blok_size: 3}\nscheduler: {max_model_len: 999}\n";
  deployment.Profile(
      "quantization: {quant_method: bitsandbytes, load_in_4bit: true, bnb_4bit_quant_type: nf3, "
      "bnb_4bit_use_double_qant: true}");
  deployment.Remove({"model.layers.0.self_attn.q_proj.weight", "model.norm.weight"});
  fs::remove(deployment.model / "tokenizer.json");
  tiny::WriteFile(deployment.model / "chat_template.jinja", "{{");
  const auto findings = deployment.Run();
  const std::pair<const char*, const char*> expected[] = {
      {"server.yaml", "unknown key modle"},
      {"server.yaml", "threads: \"two\""},
      {"server.yaml", "unknown key kv.blok_size"},
      {"server.yaml", "scheduler.max_model_len is 999"},
      {"own.yaml", "bnb_4bit_quant_type: \"nf3\""},
      {"own.yaml", "bnb_4bit_use_double_qant: unknown key"},
      {"model", "tensor model.layers.0.self_attn.q_proj.weight [64, 64] is missing"},
      {"model", "tensor model.norm.weight [64] is missing"},
      {"tokenizer.json", "no such file"},
  };
  for (const auto& [where, what] : expected) {
    EXPECT_THAT(findings, Contains(IsFinding(kError, where, what, ""))) << Text(findings);
  }
  EXPECT_EQ(findings.size(), std::size(expected) + 1) << Text(findings);
  EXPECT_THAT(findings, Each(Field(&Finding::fix, Not(IsEmpty())))) << Text(findings);
  EXPECT_EQ(findings.back().severity, kWarning);
  EXPECT_THAT(findings.back().where, HasSubstr("chat_template.jinja"));
}

TEST(Validate, AProfileThatDoesNotSuitIsFoundBesideAFaultyCheckpoint) {
  Deployment deployment;
  deployment.Profile("quantization: {quant_method: hqq, nbits: 4, group_size: 96, axis: 1}");
  deployment.Remove({"model.norm.weight"});
  const auto findings = deployment.Run();
  EXPECT_THAT(findings, Contains(IsFinding(kError, "model", "model.norm.weight", "")));
  EXPECT_THAT(findings, Contains(IsFinding(kError, "own.yaml", "group_size 96", "group_size: ")));
}

}  // namespace
}  // namespace quantd

// LoadModel: what it costs in memory under every profile, what it reports, and which profiles a
// checkpoint takes.
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
using testing_support::HostBackends;
using testing_support::kDemo;
using testing_support::kModels;
using testing_support::MakeBackend;
using testing_support::ModelRunner;
using testing_support::OptionsFor;
using testing_support::OwnedTensor;
using testing_support::OwnedTensors;
using testing_support::ReadFile;
using testing_support::ReadTensors;
using testing_support::TempDir;
using testing_support::TinyModelOptions;
using testing_support::TryLoad;
using testing_support::WriteFile;
using testing_support::WriteTensors;
using testing_support::WriteTinyModel;

// ---- memory
// -------------------------------------------------------------------------------------------

// Bytes of a model under a profile, from the formats' own arithmetic.
int64_t ExpectedBytes(const DecoderSpec& s, const std::string& profile) {
  struct Shape {
    int64_t n, k;
  };
  const int64_t q = s.num_heads * s.head_dim, kv = s.num_kv_heads * s.head_dim;
  const std::vector<Shape> linears = {{q, s.hidden_size},
                                      {kv, s.hidden_size},
                                      {kv, s.hidden_size},
                                      {s.hidden_size, q},
                                      {s.intermediate_size, s.hidden_size},
                                      {s.intermediate_size, s.hidden_size},
                                      {s.hidden_size, s.intermediate_size}};
  const int64_t plain = profile == "fp32" ? 4 : 2;
  int64_t bytes =
      2 * s.vocab_size * s.hidden_size * plain + (2 * s.num_layers + 1) * s.hidden_size * 4;
  for (const Shape& w : linears) {
    const int64_t elements = w.n * w.k;
    int64_t one = elements * plain;
    if (profile == "nf4" || profile == "fp4") one = elements / 2 + elements / 64 * 4;
    if (profile == "nf4-dq" || profile == "fp4-dq") {
      one = elements / 2 + elements / 64 + (elements / 64 + 255) / 256 * 4 + 256 * 4 + 4;
    }
    if (profile == "int8" || profile == "int8-no-outliers") one = elements + w.n * 4;
    if (profile == "torchao-int4") one = elements / 2 + w.n * ((w.k + 127) / 128) * 4;
    if (profile == "torchao-int8" || profile == "torchao-int8-dynamic" ||
        profile == "torchao-fp8-dynamic") {
      one = elements + w.n * 4;
    }
    if (profile == "hqq8") one = elements + elements / 64 * 4;
    if (profile == "hqq4" || profile == "hqq3" || profile == "metal4")
      one = elements / 2 + elements / 64 * 4;
    if (profile == "hqq2") one = elements / 4 + elements / 32 * 4;
    if (profile == "fp8") one = elements + ((w.n + 127) / 128) * ((w.k + 127) / 128) * 4;
    bytes += s.num_layers * one;
  }
  return bytes;
}

TEST(LoadModel, ResidentBytesAreWhatTheFormatsSay) {
  for (const std::filesystem::path& dir : {kModels / "llama_bf16", kDemo}) {
    for (const std::string& profile : BuiltInProfiles()) {
      for (const std::string& name : {HostBackends().front(), HostBackends().back()}) {
        const std::string where =
            fmt::format("{} {} on {}", dir.filename().string(), profile, name);
        const auto backend = MakeBackend(name);
        auto loaded = LoadModel(*backend, OptionsFor(dir, profile));
        ASSERT_TRUE(loaded.ok()) << where << ": " << loaded.status();
        const QuantizationReport& report = loaded->report;
        const double expected = static_cast<double>(ExpectedBytes(loaded->spec, profile));
        const double resident = static_cast<double>(report.resident_bytes);
        EXPECT_LE(resident, 1.05 * expected) << where;
        EXPECT_GE(resident, 0.999 * expected) << where;
        int64_t grouped = 0, grouped_parameters = 0, modules = 0;
        for (const auto& g : report.groups) {
          grouped += g.bytes;
          grouped_parameters += g.parameters;
          modules += g.modules;
        }
        const int64_t norms = (2 * loaded->spec.num_layers + 1) * loaded->spec.hidden_size;
        EXPECT_EQ(grouped + norms * 4, report.resident_bytes) << where;
        EXPECT_EQ(grouped_parameters + norms, report.parameters) << where;
        EXPECT_EQ(modules, 7 * loaded->spec.num_layers + 2) << where;
        EXPECT_EQ(report.profile_name, profile);

        const MemoryAccount& account = backend->memory();
        int64_t booked = 0;
        for (const MemoryComponent c :
             {MemoryComponent::kWeights, MemoryComponent::kScales, MemoryComponent::kEmbedding,
              MemoryComponent::kHead, MemoryComponent::kNorms}) {
          booked += account.Bytes(c);
        }
        const int64_t rope = loaded->spec.max_position_embeddings * loaded->spec.head_dim * 4;
        EXPECT_EQ(booked - rope, report.resident_bytes) << where;
      }
    }
  }
}

TEST(LoadModel, HostHoldsOneMatrixAtATime) {
  for (const std::string& profile : BuiltInProfiles()) {
    const auto backend = CreateRefBackend();
    auto loaded = LoadModel(*backend, OptionsFor(kDemo, profile));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    // The largest matrices in canonical form: the embedding, or one byte a code of an mlp matrix
    // with scales.
    const int64_t plain = profile == "fp32" ? 4 : 2;
    const int64_t largest = std::max<int64_t>(4096 * 384 * plain, 1024 * 384 * plain);
    EXPECT_GE(loaded->report.peak_load_bytes, loaded->report.resident_bytes * 9 / 10);
    EXPECT_LE(loaded->report.peak_load_bytes, loaded->report.resident_bytes + 2 * largest)
        << profile;
  }
}

TEST(LoadModel, ReportsProgressByTheBytesOfTheSource) {
  const auto backend = CreateRefBackend();
  LoadOptions options = OptionsFor(kDemo, "nf4");
  std::vector<LoadProgress> seen;
  options.on_progress = [&](const LoadProgress& p) { seen.push_back(p); };
  auto loaded = LoadModel(*backend, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_FALSE(seen.empty());
  for (size_t i = 1; i < seen.size(); ++i) EXPECT_GT(seen[i].bytes_done, seen[i - 1].bytes_done);
  EXPECT_EQ(seen.back().bytes_done, seen.back().bytes_total);
  const auto checkpoint = Checkpoint::Open(kDemo);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ(seen.back().bytes_total, (*checkpoint)->total_bytes());
  EXPECT_EQ(seen.front().current, "model.embed_tokens");
}

TEST(LoadModel, ReportsWhatACheckpointIsWhenNoProfileIsGiven) {
  const auto backend = CreateRefBackend();
  auto loaded = LoadModel(*backend, OptionsFor(kModels / "bnb_nf4_dq"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->report.profile_name, "checkpoint");
  EXPECT_EQ(loaded->model->compute_dtype(), DType::kBF16);
  EXPECT_EQ(loaded->kv_dtype, DType::kBF16);
  ASSERT_EQ(loaded->report.groups.size(), 2u);
  EXPECT_EQ(loaded->report.groups[0].method, "none");
  EXPECT_EQ(loaded->report.groups[0].modules, 2);
  EXPECT_EQ(loaded->report.groups[1].method, "bitsandbytes_4bit");
  EXPECT_EQ(loaded->report.groups[1].format, "nf4.flat64.nested");
  EXPECT_EQ(loaded->report.groups[1].modules, 7);
  EXPECT_THAT(loaded->report.effective_profile, HasSubstr("bnb_4bit_use_double_quant: true"));
}

TEST(LoadModel, CacheDTypeComesFromTheProfile) {
  const auto backend = CreateRefBackend();
  LoadOptions options = OptionsFor(kModels / "bnb_nf4");
  options.profile.kv_dtype = DType::kF32;
  auto loaded = LoadModel(*backend, options);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->kv_dtype, DType::kF32);
}

// The same model from tensors that are not aligned to their elements gives the same logits.
TEST(LoadModel, ReadsUnalignedTensors) {
  TempDir dir;
  WriteTinyModel(dir.path());
  std::vector<std::vector<float>> logits;
  for (const bool shifted : {false, true}) {
    if (shifted) {  // one space more in the header moves every tensor by a byte
      std::string file = ReadFile(dir.path() / "model.safetensors");
      uint64_t length = 0;
      std::memcpy(&length, file.data(), 8);
      file.insert(8 + length, " ");
      ++length;
      std::memcpy(file.data(), &length, 8);
      WriteFile(dir.path() / "model.safetensors", file);
    }
    const auto backend = CreateRefBackend();
    auto loaded = LoadModel(*backend, OptionsFor(dir.path(), "nf4"));
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    logits.push_back(ModelRunner(*backend, std::move(*loaded)).Forward({5, 6, 7}));
  }
  EXPECT_EQ(logits[0], logits[1]);
}

TEST(LoadModel, AcceptsHarmlessExtrasOnly) {
  TempDir dir;
  TinyModelOptions o;
  o.tie_word_embeddings = true;
  WriteTinyModel(dir.path(), o);
  OwnedTensors tensors = ReadTensors(dir.path() / "model.safetensors");
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] =
      FloatTensor({1, 2, 3, 4}, {4}, DType::kF32);
  tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"];
  WriteTensors(dir.path() / "model.safetensors", tensors);
  const auto backend = CreateRefBackend();
  auto loaded = LoadModel(*backend, OptionsFor(dir.path()));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_THAT(
      loaded->report.accepted_extras,
      ::testing::ElementsAre("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"));
  tensors["lm_head.weight"].bytes[17] ^= 1;
  WriteTensors(dir.path() / "model.safetensors", tensors);
  const absl::Status status = TryLoad(OptionsFor(dir.path()));
  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(Message(status), HasSubstr("lm_head.weight differs from model.embed_tokens.weight"));
}

// ---- profiles against checkpoints
// ---------------------------------------------------------------------

TEST(LoadModel, AProfileMustNotContradictAQuantizedCheckpoint) {
  for (const char* profile : {"fp4", "nf4-dq", "int8", "bf16",
                              "quantization: {load_in_4bit: true, bnb_4bit_quant_type: nf4}\n"}) {
    const absl::Status status = TryLoad(OptionsFor(kModels / "bnb_nf4", profile));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << profile << ": " << status;
    EXPECT_THAT(
        Message(status),
        HasSubstr(
            "the checkpoint is quantized already: bitsandbytes 4-bit nf4, compute dtype bfloat16"))
        << profile;
  }
  EXPECT_TRUE(
      absl::IsInvalidArgument(TryLoad(OptionsFor(kModels / "bnb_int8", "int8-no-outliers"))));
  for (const auto& [fixture, profile] : {std::pair("bnb_nf4", "nf4"), std::pair("bnb_int8", "int8"),
                                         std::pair("bnb_nf4", "kv_cache: {dtype: float32}\n")}) {
    const auto backend = CreateRefBackend();
    EXPECT_TRUE(LoadModel(*backend, OptionsFor(kModels / fixture, profile)).ok())
        << fixture << " " << profile;
  }
}

TEST(LoadModel, RefusesToQuantizeAnEmbedding) {
  const absl::Status status = TryLoad(
      OptionsFor(kModels / "llama_bf16",
                 "overrides: [{match: embed_tokens, quantization: {load_in_8bit: true}}]\n"));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(Message(status), HasSubstr("model.embed_tokens: an embedding cannot be quantized"));
}

TEST(LoadModel, RefusesWeightsThatDoNotFitFloat16) {
  TempDir dir;
  TinyModelOptions o;
  o.dtype = DType::kF32;
  WriteTinyModel(dir.path(), o);
  OwnedTensors tensors = ReadTensors(dir.path() / "model.safetensors");
  const float large = 65520.0f;
  std::memcpy(tensors.at("model.layers.0.mlp.up_proj.weight").bytes.data() + 4 * 33, &large, 4);
  WriteTensors(dir.path() / "model.safetensors", tensors);
  for (const char* profile : {"fp16", "int8"}) {
    const absl::Status status = TryLoad(OptionsFor(dir.path(), profile));
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(
        Message(status),
        HasSubstr("model.layers.0.mlp.up_proj: element [1, 1] is 65520, beyond float16's 65504"));
  }
  const auto backend = CreateRefBackend();
  EXPECT_TRUE(LoadModel(*backend, OptionsFor(dir.path(), "bf16")).ok());
}

TEST(LoadModel, NamesAMissingFolder) {
  const absl::Status status = TryLoad(OptionsFor("/nowhere/model"));
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(Message(status), HasSubstr("/nowhere/model: no such folder"));
}

}  // namespace
}  // namespace quantd

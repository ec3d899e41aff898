// FakeBackend, FakeModel, FakeTokenizer: an engine without numerics, whose tokens give away every
// mistake.
//
// FakeModel writes each row's token and position to the KV cache and computes logits from a hash of
// what it reads back through the block tables: a wrong slot, table, position or order changes the
// tokens, and ReferenceTokens computes from the history alone what they must be. FakeBackend queues
// every op until Synchronize, as a device does: results used too early are wrong.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/models/model.h"
#include "engine/text/tokenizer.h"
#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {

inline constexpr int32_t kFakeVocab = 64;
inline constexpr int32_t kFakeEos = 0;
inline constexpr int32_t kPoison = 63;  // in a history: its logits are NaN

class FakeBackend : public Backend {
 public:
  std::string_view name() const override { return "fake"; }
  DeviceInfo info() const override { return {}; }

  absl::StatusOr<Buffer> Allocate(size_t bytes, MemoryComponent component) override {
    const size_t rounded = (bytes + 63) / 64 * 64 + 64;
    void* data = std::aligned_alloc(64, rounded);
    std::memset(data, 0, rounded);
    return Buffer(
        data, bytes, [](void* p, size_t) { std::free(p); }, &memory(), component);
  }
  void Upload(const void* host, size_t bytes, void* device) override {
    std::string copy(static_cast<const char*>(host), bytes);
    Enqueue([copy = std::move(copy), device] { std::memcpy(device, copy.data(), copy.size()); });
  }
  void Download(const void* device, size_t bytes, void* host) override {
    std::memcpy(host, device, bytes);
  }
  void FeedBackTokens(std::span<int32_t> ids, std::span<const int32_t> source,
                      std::span<const int32_t> sampled) override {
    ++feedbacks;
    Enqueue([=] {
      for (size_t i = 0; i < ids.size(); ++i) {
        if (source[i] >= 0) ids[i] = sampled[static_cast<size_t>(source[i])];
      }
    });
  }
  void Sample(TensorView logits, std::span<const SampleParams> params, std::span<int32_t> sampled,
              std::span<SampleResult> results) override {
    // Lists belong to the caller, who may change them once this has returned.
    struct Lists {
      std::vector<int32_t> banned;
      std::vector<uint32_t> mask;
      std::vector<LogitEdit> edits;
    };
    auto lists = std::make_shared<std::vector<Lists>>();
    std::vector<SampleParams> copy(params.begin(), params.end());
    for (const SampleParams& p : params) {
      lists->push_back({{p.banned_ids.begin(), p.banned_ids.end()},
                        {p.allowed_mask.begin(), p.allowed_mask.end()},
                        {p.edits.begin(), p.edits.end()}});
    }
    for (size_t i = 0; i < copy.size(); ++i) {
      copy[i].banned_ids = (*lists)[i].banned;
      copy[i].allowed_mask = (*lists)[i].mask;
      copy[i].edits = (*lists)[i].edits;
    }
    Enqueue([=, lists = std::move(lists)] {
      std::vector<TokenLogprob> scratch(2 * static_cast<size_t>(logits.cols));
      for (size_t i = 0; i < copy.size(); ++i) {
        const std::span<float> row(logits.Row<float>(static_cast<int64_t>(i)),
                                   static_cast<size_t>(logits.cols));
        SampleRow(row, copy[i], scratch, results[i]);
        for (const float x : row) {
          if (std::isnan(x)) results[i].finite = false;
        }
        sampled[i] = results[i].token_id;
      }
    });
  }
  absl::Status Synchronize() override {
    for (const auto& op : queue_) op();
    queue_.clear();
    return on_synchronize ? on_synchronize() : absl::OkStatus();
  }
  void Enqueue(std::function<void()> op) { queue_.push_back(std::move(op)); }

  std::function<absl::Status()> on_synchronize;  // engine thread; set before the engine exists
  std::atomic<int64_t> feedbacks{0};

  // The model needs no numerics.
  absl::StatusOr<std::unique_ptr<PackedWeight>> CreatePacked(const QuantFormat&, int64_t,
                                                             std::vector<RowSegment>,
                                                             MemoryComponent) override {
    return Unimplemented("no weights");
  }
  absl::Status PackRows(PackedWeight&, size_t, const QuantizedMatrix&) override {
    return Unimplemented("no weights");
  }
  void Embed(const PackedWeight&, std::span<const int32_t>, float, TensorView) override {}
  void NormHeads(TensorView, TensorView, const float*, const float*, float,
                 const AttentionSpec&) override {}
  void SoftCap(TensorView, float) override {}
  void RmsNorm(TensorView, const float*, float, TensorView) override {}
  void AddRmsNorm(TensorView, TensorView, const float*, float, TensorView) override {}
  void Linear(const PackedWeight&, const ActivationQuant&, TensorView, const float*,
              TensorView) override {}
  void RopeAndStoreKv(TensorView, TensorView, TensorView, const float*, const AttentionSpec&,
                      const AttentionBatch&, const KvLayer&) override {}
  void Attention(TensorView, const AttentionSpec&, const AttentionBatch&, const KvLayer&,
                 TensorView) override {}
  void GatedActivation(TensorView, Activation, TensorView) override {}
  void GatherRows(TensorView, std::span<const int32_t>, TensorView) override {}

 private:
  std::vector<std::function<void()>> queue_;
};

inline uint64_t MixToken(uint64_t h, int32_t token) {
  h = (h ^ static_cast<uint64_t>(static_cast<uint32_t>(token) + 1)) * 0xFF51AFD7ED558CCDull;
  return h ^ (h >> 31);
}

class FakeModel : public Model {
 public:
  explicit FakeModel(FakeBackend* backend, int64_t max_rows)
      : backend_(*backend), max_rows_(max_rows) {
    spec_ = Spec();
  }
  static DecoderSpec Spec() {
    DecoderSpec spec;
    spec.vocab_size = kFakeVocab;
    spec.num_layers = 1;
    spec.num_heads = spec.num_kv_heads = 1;
    spec.head_dim = 2;
    spec.max_position_embeddings = 512;
    spec.eos_token_ids = {kFakeEos};
    return spec;
  }
  const DecoderSpec& spec() const override { return spec_; }
  DType compute_dtype() const override { return DType::kF32; }
  int64_t max_rows() const override { return max_rows_; }

  /// When not empty, the most likely token after position p is script[p], whatever the history.
  std::vector<int32_t> script;

  static void LogitsOf(uint64_t hash, bool poisoned, std::span<float> logits) {
    for (size_t v = 0; v < logits.size(); ++v) {
      const uint64_t mixed = MixToken(hash, static_cast<int32_t>(v));
      logits[v] = static_cast<float>(mixed >> 40) * 0x1p-24f * 4.0f;
      if (poisoned) logits[v] = std::numeric_limits<float>::quiet_NaN();
    }
    // Ends and poison come only by script, so that runs are as long as asked for.
    logits[kFakeEos] = logits[kPoison] = -1e9f;
    if (poisoned) logits[kFakeEos] = std::numeric_limits<float>::quiet_NaN();
  }

  void Forward(const Batch& batch, const KvCache& kv, TensorView logits,
               const LinearObserver*) override {
    ASSERT_LE(static_cast<int64_t>(batch.token_ids.size()), max_rows_);
    backend_.Enqueue([this, batch, layer = kv.layer(0), logits] { Run(batch, layer, logits); });
  }

 private:
  void Run(const Batch& batch, const KvLayer& layer, TensorView logits) const {
    auto* k = static_cast<int32_t*>(layer.k);  // [slot][token, position]
    const auto& a = batch.attention;
    for (size_t r = 0; r < batch.token_ids.size(); ++r) {
      k[2 * a.slots[r]] = batch.token_ids[r];
      k[2 * a.slots[r] + 1] = a.positions[r];
    }
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const auto r = static_cast<size_t>(batch.logit_rows[i]);
      uint64_t hash = 1;
      bool poisoned = false;
      for (int32_t p = 0; p <= a.positions[r]; ++p) {
        const int32_t block = a.block_tables[static_cast<size_t>(a.seq_of_row[r] * a.max_blocks +
                                                                 p / layer.block_size)];
        const int32_t slot = block * layer.block_size + p % layer.block_size;
        EXPECT_NE(block, 0);
        EXPECT_EQ(k[2 * slot + 1], p) << "the slot holds another position";
        hash = MixToken(hash, k[2 * slot]);
        poisoned |= k[2 * slot] == kPoison;
      }
      const std::span<float> row(logits.Row<float>(static_cast<int64_t>(i)), kFakeVocab);
      LogitsOf(hash, poisoned, row);
      const auto position = static_cast<size_t>(a.positions[r]);
      if (position < script.size()) row[static_cast<size_t>(script[position])] = 100.0f;
    }
  }

  FakeBackend& backend_;
  const int64_t max_rows_;
  DecoderSpec spec_;
};

/// What the options of `s` make of the logits of the token after `tokens`, by their definitions in
/// docs/requests.md. A bad word's letters are its tokens.
inline void ReferenceEdit(const SamplingParams& s, const std::vector<int32_t>& tokens,
                          size_t prompt_size, std::span<float> logits) {
  for (const auto& [id, bias] : s.logit_bias) logits[static_cast<size_t>(id)] += bias;
  for (size_t v = 0; v < logits.size(); ++v) {
    const auto id = static_cast<int32_t>(v);
    const auto output = tokens.begin() + static_cast<std::ptrdiff_t>(prompt_size);
    const auto said = std::count(output, tokens.end(), id);
    if (std::count(tokens.begin(), tokens.end(), id) > 0) {
      logits[v] =
          logits[v] > 0 ? logits[v] / s.repetition_penalty : logits[v] * s.repetition_penalty;
    }
    if (said > 0) {
      logits[v] -= s.presence_penalty + s.frequency_penalty * static_cast<float>(said);
    }
    const auto& allowed = s.allowed_token_ids;
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), id) == allowed.end()) {
      logits[v] = -std::numeric_limits<float>::infinity();
    }
  }
  for (const std::string& bad : s.bad_words) {
    for (const std::string& word : {bad, " " + bad}) {
      std::vector<int32_t> ids;
      for (const char c : word) ids.push_back(c == ' ' ? 27 : c - 'a' + 1);
      const size_t before = ids.size() - 1;
      if (tokens.size() - prompt_size < before) continue;
      if (std::equal(tokens.end() - static_cast<std::ptrdiff_t>(before), tokens.end(),
                     ids.begin())) {
        logits[static_cast<size_t>(ids.back())] = -std::numeric_limits<float>::infinity();
      }
    }
  }
}

/// What the engine must generate for output `index` of `request`, from its history alone.
inline std::vector<int32_t> ReferenceTokens(const Request& request, uint32_t index = 0) {
  std::vector<int32_t> tokens = request.prompt_ids;
  std::vector<float> logits(kFakeVocab);
  std::vector<TokenLogprob> scratch(2 * kFakeVocab);
  const SamplingParams& s = request.sampling;
  for (int32_t i = 0; i < s.max_tokens; ++i) {
    uint64_t hash = 1;
    for (const int32_t t : tokens) hash = MixToken(hash, t);
    FakeModel::LogitsOf(hash, false, logits);
    ReferenceEdit(s, tokens, request.prompt_ids.size(), logits);
    SampleResult result;
    SampleRow(logits,
              {.temperature = s.temperature,
               .top_k = s.top_k,
               .top_p = s.top_p,
               .min_p = s.min_p,
               .seed = s.seed.value_or(0),
               .sequence_index = index,
               .position = static_cast<uint32_t>(tokens.size())},
              scratch, result);
    tokens.push_back(result.token_id);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(request.prompt_ids.size()), tokens.end()};
}

/// Ids 1..26 are letters, 27 a space, 28 and 29 the two halves of U+00E9, 0 is the special end.
class FakeTokenizer : public Tokenizer {
 public:
  FakeTokenizer() {
    for (int32_t id = 0; id < kFakeVocab; ++id) {
      std::string bytes(1, static_cast<char>('a' + id - 1));
      if (id == kFakeEos) bytes = "<end>";
      if (id == 27) bytes = " ";
      if (id == 28) bytes = "\xC3";
      if (id == 29) bytes = "\xA9";
      if (id > 29) bytes = fmt::format("[{}]", id);
      bytes_.push_back(bytes);
    }
  }
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text, bool) const override {
    std::vector<int32_t> ids;
    for (const char c : text) ids.push_back(c == ' ' ? 27 : c - 'a' + 1);
    return ids;
  }
  std::string_view TokenBytes(int32_t id) const override { return bytes_[static_cast<size_t>(id)]; }
  bool IsSpecial(int32_t id) const override { return id == kFakeEos; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  int32_t vocab_size() const override { return kFakeVocab; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return kFakeEos; }
  std::string Decode(std::span<const int32_t> ids, bool skip) const override {
    std::string bytes, text;
    for (const int32_t id : ids) {
      if (!skip || !IsSpecial(id)) bytes += TokenBytes(id);
    }
    AppendLossyUtf8(bytes, /*last=*/true, &text);
    return text;
  }

 private:
  std::vector<std::string> bytes_;
};

/// An engine over the fakes. Members in the order they must be destroyed in.
struct FakeEngine {
  explicit FakeEngine(const EngineOptions& options, std::vector<int32_t> script = {},
                      EngineObserver* observer = nullptr,
                      std::function<absl::Status()> on_synchronize = nullptr) {
    backend.on_synchronize = std::move(on_synchronize);
    auto model = std::make_unique<FakeModel>(&backend, 64);
    model->script = std::move(script);
    LoadedModel loaded;
    loaded.spec = model->spec();
    loaded.model = std::move(model);
    loaded.kv_dtype = DType::kF32;
    auto created = Engine::Create(backend, std::move(loaded), &tokenizer, options, observer);
    EXPECT_TRUE(created.ok()) << created.status();
    engine = std::move(*created);
  }
  Engine* operator->() { return engine.get(); }
  Engine& operator*() { return *engine; }

  FakeBackend backend;
  FakeTokenizer tokenizer;
  std::unique_ptr<Engine> engine;
};

/// Options small enough that a handful of requests fill everything.
inline EngineOptions SmallOptions(int depth = 0) {
  EngineOptions options;
  options.max_num_seqs = 4;
  options.max_num_batched_tokens = 16;
  options.block_size = 4;
  options.num_kv_blocks = 200;
  options.pipeline_depth = depth;
  return options;
}

inline Request GreedyRequest(std::vector<int32_t> prompt, int32_t max_tokens) {
  Request request;
  request.prompt_ids = std::move(prompt);
  request.sampling.temperature = 0.0f;
  request.sampling.max_tokens = max_tokens;
  return request;
}

/// Everything is finished and nothing is held.
inline void ExpectNothingLeaked(Engine& engine) {
  engine.Drain(std::chrono::seconds(30));
  const EngineStats stats = engine.Stats();
  EXPECT_EQ(stats.waiting, 0);
  EXPECT_EQ(stats.running, 0);
  EXPECT_EQ(stats.kv_blocks_free, stats.kv_blocks_total);
}

}  // namespace quantd

// FakeEngine: an Engine without a model, for the tests of what is around it. Every step gives each
// live request one token, 'a', 'b', ... in turn, `width` letters of text each. ByteTokenizer: one
// token a byte.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"
#include "engine/text/tokenizer.h"

namespace quantd::test {

class ByteTokenizer : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              bool add_special_tokens) const override;
  int64_t MinTokens(std::string_view text) const override {
    return static_cast<int64_t>(text.size());
  }
  std::string_view TokenBytes(int32_t id) const override;
  bool IsSpecial(int32_t) const override { return false; }
  std::optional<int32_t> TokenToId(std::string_view) const override { return std::nullopt; }
  int32_t vocab_size() const override { return 256; }
  std::optional<int32_t> bos_id() const override { return std::nullopt; }
  std::optional<int32_t> eos_id() const override { return std::nullopt; }
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const override;

  /// While set, Encode waits.
  void Block(bool blocked);

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  bool blocked_ = false;
};

class FakeEngine : public Engine {
 public:
  struct Options {
    size_t width = 1;                     // bytes of text a token
    std::chrono::microseconds step{100};  // between steps
    size_t max_live = 10000;              // beyond it Submit is RESOURCE_EXHAUSTED
    int32_t max_model_len = 1 << 20;
  };
  FakeEngine() : FakeEngine(Options()) {}
  explicit FakeEngine(Options options);
  ~FakeEngine() override;

  absl::StatusOr<RequestHandle> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(RequestHandle handle) override;
  int64_t Drain(std::chrono::milliseconds timeout) override;
  EngineStats Stats() const override;
  absl::Status Health() const override { return absl::OkStatus(); }
  const DecoderSpec& spec() const override { return spec_; }
  const QuantizationReport& report() const override { return report_; }
  const GenerationDefaults& defaults() const override { return defaults_; }
  int32_t max_model_len() const override { return options_.max_model_len; }

  /// While held, requests are taken but get no tokens.
  void Hold(bool held) { held_ = held; }
  size_t live() const;
  int64_t cancels() const { return cancels_; }
  int64_t tokens() const { return tokens_; }          // made so far, all requests
  int64_t stalled_steps() const { return stalled_; }  // steps a request was passed over
  Request last_request() const;

 private:
  struct Live {
    Request request;
    std::shared_ptr<RequestSink> sink;
    int32_t made = 0;
    bool cancelled = false;
  };
  void Loop();
  // False when the request is finished.
  bool StepOne(Live& live);

  const Options options_;
  DecoderSpec spec_;
  QuantizationReport report_;
  GenerationDefaults defaults_;
  std::atomic<bool> held_{false};
  std::atomic<int64_t> cancels_{0};
  std::atomic<int64_t> tokens_{0};
  std::atomic<int64_t> stalled_{0};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  bool draining_ = false;
  uint64_t next_ = 1;
  Request last_;
  std::map<RequestHandle, Live> live_;
  std::thread thread_;
};

}  // namespace quantd::test

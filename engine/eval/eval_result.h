// What an evaluation finds: per window and profile while it runs, and the report at its end.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace quantd {

/// One profile on one window of the text. In nats.
struct WindowScore {
  int64_t window = 0;    // index in EvalText::windows
  int64_t tokens = 0;    // scored
  int64_t bytes = 0;     // of text, of these tokens
  double nll = 0.0;      // sum of -log p
  double seconds = 0.0;  // of the model's forward passes alone
  int64_t rows = 0;      // tokens run in them
  // Against the reference; zero and empty without one.
  double reference_nll = 0.0;
  int64_t top1 = 0;       // predictions whose likeliest token is the reference's
  int64_t top5 = 0;       // sum of TokenScore::top5
  std::vector<float> kl;  // [tokens], rounded to four significant digits
};

/// What a quantized module does to its output, over sampled rows of the text: the root of
/// sum |y - y_ref|^2 / sum |y_ref|^2.
struct LinearError {
  std::string module;                   // "model.layers.0.self_attn.q_proj"
  std::string format;                   // QuantFormat::ToString
  double isolated = 0.0;                // given the reference's input: what the module itself does
  double accumulated = 0.0;             // in the running model: with all that came before it
  std::optional<double> outlier_share;  // LLM.int8(): inputs at or above the threshold, of all
};

/// What is measured once a profile.
struct ProfileFacts {
  std::string name;
  std::string hash;  // QuantProfile::Hash
  std::string description;
  std::string compute_dtype;
  int64_t resident_bytes = 0;
  double bits_per_weight = 0.0;
  int64_t kv_bytes_per_token = 0;
  double load_seconds = 0.0;
  double decode_tokens_per_second = 0.0;  // one sequence, without a scheduler; median step
  std::vector<int64_t> greedy_lengths;    // tokens, of greedy_tokens, before the first other one
  std::vector<LinearError> linears;       // in the order the model runs them
};

struct Interval {
  double value = 0.0;
  std::optional<double> low, high;  // 95 %, bootstrap over windows; absent with less than two
};

struct ProfileResult {
  ProfileFacts facts;
  std::string refusal;  // why it could not be measured; then nothing below is set
  int64_t tokens = 0;
  double perplexity = 0.0;
  double bits_per_byte = 0.0;
  double prefill_tokens_per_second = 0.0;  // with logits of every token
  // Against the reference:
  bool compared = false;
  Interval retention;  // the reference's perplexity / the profile's
  double kl_mean = 0.0, kl_median = 0.0, kl_p99 = 0.0, kl_max = 0.0;
  double top1 = 0.0;  // share
  double top5 = 0.0;  // share of the reference's five likeliest tokens
};

struct EvalReport {
  std::string version;  // of quantd
  std::string date;     // ISO, UTC; of the measurement
  std::string model;
  std::string fingerprint;  // ModelFingerprint
  std::string architecture;
  int64_t parameters = 0;
  std::string backend;          // "cpu"
  std::string device;           // DeviceInfo::description
  std::string reference;        // profile; empty: none, nothing is compared
  std::string reference_model;  // folder, where it is another one
  std::string text;             // file
  std::string text_hash;
  int64_t documents = 0, windows = 0, tokens = 0, bytes = 0;
  int64_t context = 0, stride = 0;
  int64_t greedy_tokens = 0;
  std::vector<ProfileResult> profiles;  // largest resident bytes first
};

}  // namespace quantd

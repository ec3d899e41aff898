// RequestSource: the requests of a load, each a function of its number, so that the same seed sends
// the same ones in whatever order they are made. Immutable after Create; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "quantd/v1/inference.pb.h"
#include "server/bench/lengths.h"

namespace quantd::bench {

struct RequestOptions {
  LengthDistribution input{128};     // of the prompt, without the shared prefix
  LengthDistribution output{128};    // max_tokens; what is generated with ignore_eos
  int32_t prefix_tokens = 0;         // shared by `prefix_share` of the requests
  double prefix_share = 1.0;         // [0, 1]
  std::vector<int32_t> text_tokens;  // prompts are slices of it; empty: random tokens
  bool ignore_eos = true;
  float temperature = 0.0f;
  uint64_t seed = 0;
};

class RequestSource {
 public:
  /// For a model of `vocab_size` tokens and a context of `context_length`. INVALID_ARGUMENT when
  /// the lengths that are asked for cannot fit that context; lengths of a normal or lognormal
  /// distribution are cut to it.
  static absl::StatusOr<RequestSource> Create(RequestOptions options, int64_t vocab_size,
                                              int32_t context_length);

  /// Request `index` of run `run`. Other runs have other prompts, or the prefix cache would know
  /// them; the shared prefix is one for all.
  v1::GenerateRequest Make(uint64_t run, uint64_t index) const;

 private:
  RequestSource() = default;
  void AppendPrompt(std::mt19937_64& random, int32_t count, v1::TokenIds* ids) const;

  RequestOptions options_;
  int64_t vocab_size_ = 0;
  int32_t most_input_ = 0, most_output_ = 0;
  v1::TokenIds prefix_;
};

}  // namespace quantd::bench

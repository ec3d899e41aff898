#include "server/bench/request_source.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"

namespace quantd::bench {
namespace {

// Never the run of a load: those count from 0.
constexpr uint64_t kPrefixRun = ~uint64_t{0};

std::mt19937_64 Generator(uint64_t seed, uint64_t run, uint64_t index) {
  std::seed_seq mixed{static_cast<uint32_t>(seed),  static_cast<uint32_t>(seed >> 32),
                      static_cast<uint32_t>(run),   static_cast<uint32_t>(run >> 32),
                      static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32)};
  return std::mt19937_64(mixed);
}

}  // namespace

absl::StatusOr<RequestSource> RequestSource::Create(RequestOptions options, int64_t vocab_size,
                                                    int32_t context_length) {
  if (vocab_size < 1) return InvalidArgument("the server's model has no vocabulary");
  // A length without a bound takes at most half of what the others leave.
  const int32_t prefix = options.prefix_tokens;
  const int32_t input = std::max(options.input.bound(), 1);
  const int32_t output = std::max(options.output.bound(), 1);
  if (int64_t{prefix} + input + output > context_length) {
    return InvalidArgument(
        "prefix {}, prompt {} and output {} come to {} tokens, but the model's context is {}",
        prefix, options.input.ToString(), options.output.ToString(),
        int64_t{prefix} + input + output, context_length);
  }
  RequestSource source;
  const int32_t room = context_length - prefix;
  const bool input_bound = options.input.bound() > 0, output_bound = options.output.bound() > 0;
  source.most_input_ = input_bound ? input : output_bound ? room - output : room / 2;
  source.most_output_ = output_bound ? output : room - source.most_input_;
  source.vocab_size_ = vocab_size;
  source.options_ = std::move(options);
  std::mt19937_64 random = Generator(source.options_.seed, kPrefixRun, 0);
  source.AppendPrompt(random, prefix, &source.prefix_);
  return source;
}

void RequestSource::AppendPrompt(std::mt19937_64& random, int32_t count, v1::TokenIds* ids) const {
  ids->mutable_ids()->Reserve(ids->ids_size() + count);
  const std::vector<int32_t>& text = options_.text_tokens;
  if (text.empty()) {
    std::uniform_int_distribution<int64_t> token(0, vocab_size_ - 1);
    for (int32_t i = 0; i < count; ++i) ids->add_ids(static_cast<int32_t>(token(random)));
    return;
  }
  // A slice from anywhere; what is longer than the text goes on at its beginning.
  size_t at = std::uniform_int_distribution<size_t>(0, text.size() - 1)(random);
  for (int32_t i = 0; i < count; ++i) {
    ids->add_ids(text[at]);
    at = (at + 1) % text.size();
  }
}

v1::GenerateRequest RequestSource::Make(uint64_t run, uint64_t index) const {
  std::mt19937_64 random = Generator(options_.seed, run, index);
  v1::GenerateRequest request;
  request.set_request_id(fmt::format("bench-{}-{}", run, index));
  const int32_t input = options_.input.Draw(random, most_input_);
  const int32_t output = options_.output.Draw(random, most_output_);
  const bool shared = std::uniform_real_distribution<double>(0, 1)(random) < options_.prefix_share;
  v1::TokenIds* ids = request.mutable_token_ids();
  if (shared) *ids = prefix_;
  AppendPrompt(random, input, ids);
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_max_tokens(output);
  sampling->set_temperature(options_.temperature);
  sampling->set_ignore_eos(options_.ignore_eos);
  sampling->set_seed(random());
  return request;
}

}  // namespace quantd::bench

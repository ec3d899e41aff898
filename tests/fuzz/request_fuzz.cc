// A GenerateRequest as it comes off the wire, up to what the engine is handed.
#include <google/protobuf/stubs/logging.h>

#include <cmath>

#include "quantd/v1/inference.pb.h"
#include "server/grpc/convert.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(request) {
  static const auto unused = google::protobuf::SetLogHandler(nullptr);  // says each invalid UTF-8
  (void)unused;
  v1::GenerateRequest proto;
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  ModelFacts facts;
  facts.name = "m";
  facts.vocab_size = 1000;
  auto prepared = ToPreparedRequest(std::move(proto), facts);
  if (!prepared.ok()) return;
  const absl::Status sound = ValidateSampling(prepared->request.sampling, facts.vocab_size);
  if (!sound.ok()) return;
  const SamplingParams& p = prepared->request.sampling;
  QUANTD_CHECK(std::isfinite(p.temperature) && p.temperature >= 0.0f && p.top_p > 0.0f &&
                   p.max_tokens >= 1 && p.logprobs <= 20,
               "sampling that no sampler can follow");
  for (const int32_t id : prepared->request.prompt_ids)
    QUANTD_CHECK(id >= 0 && id < 1000, "{}", id);
}

}  // namespace
}  // namespace quantd

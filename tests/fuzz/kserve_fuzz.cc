// A ModelInferRequest as it comes off the wire, up to what the engine is handed.
#include <google/protobuf/stubs/logging.h>

#include <cmath>

#include "inference/grpc_service.pb.h"
#include "server/kserve/convert.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(kserve) {
  static const auto unused = google::protobuf::SetLogHandler(nullptr);  // says each invalid UTF-8
  (void)unused;
  inference::ModelInferRequest proto;
  if (!proto.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) return;
  ModelFacts facts;
  facts.name = proto.model_name();  // so that any is served
  facts.vocab_size = 1000;
  const auto request = kserve::ToInferRequest(proto, facts);
  if (!request.ok()) {
    QUANTD_CHECK(!request.status().message().empty() && request.status().message().size() < 4096,
                 "an error of {} bytes", request.status().message().size());
    return;
  }
  const SamplingParams& p = request->prepared.request.sampling;
  QUANTD_CHECK(ValidateSampling(p, facts.vocab_size).ok(), "sampling that was not checked");
  QUANTD_CHECK(p.n == 1 && p.logprobs == -1 && p.prompt_logprobs == -1, "what has no output here");
  QUANTD_CHECK(request->prepared.has_text, "no prompt");
}

}  // namespace
}  // namespace quantd

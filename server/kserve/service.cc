// The methods of one message each way. An InferReactor lives from its call's start to OnDone, which
// deletes it.
#include "server/kserve/service.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/error_details.h"
#include "server/grpc/messages.h"
#include "server/kserve/convert.h"
#include "server/kserve/infer_stream.h"
#include "server/one_line.h"
#include "server/version.h"

namespace quantd::kserve {

// ---- ModelInfer

class KserveService::InferReactor : public grpc::ServerUnaryReactor, public GenerateCall::Port {
 public:
  InferReactor(Front& front, Context* context, Bytes* response)
      : front_(front),
        context_(context),
        response_(response),
        call_(std::make_shared<GenerateCall>(this, /*streaming=*/false, 0)) {}
  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  void Describe(InferResponses responses) { responses_ = std::move(responses); }

  void Write(RequestUpdate) override {}  // a call that collects is only finished
  void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
              bool retry_pushback) override {
    if (!updates.empty()) {
      *response_ = SerializeMessage(responses_->Next(updates[0], std::nullopt));
    }
    const bool described = responses_.has_value();
    ServerUnaryReactor::Finish(
        front_.EndOf(context_, described ? responses_->Translate(status) : status, retry_pushback));
  }
  void Abort() override { context_->TryCancel(); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->Detach();
    front_.calls().Remove(call_);
    delete this;
  }

 private:
  Front& front_;
  Context* const context_;
  Bytes* const response_;
  const std::shared_ptr<GenerateCall> call_;
  std::optional<InferResponses> responses_;  // once the request is read
};

void KserveService::Start(InferReactor* reactor, Context* context, const Bytes& bytes) {
  // A copy: after the request is on its way the reactor may be gone at any time.
  const std::shared_ptr<GenerateCall> call = reactor->call();
  absl::StatusOr<Front::Opened> opened = front_.Open(*context, port_);
  if (!opened.ok()) return call->Fail(opened.status());
  std::string id;
  const auto refuse = [&](const absl::Status& status) {
    front_.LogRefusal(id, opened->caller, status);
    call->Fail(status);
  };
  inference::ModelInferRequest proto;
  if (const absl::Status s = ParseMessage(bytes, &proto); !s.ok()) return refuse(s);
  id = proto.id();
  absl::StatusOr<InferRequest> request = ToInferRequest(proto, FactsOf(*opened->model));
  if (!request.ok()) return refuse(request.status());
  if (request->stream) {
    return refuse(InvalidField("stream",
                               "true in ModelInfer, which answers once, allowed: "
                               "false or absent; ModelStreamInfer streams"));
  }
  PreparedRequest prepared = std::move(request->prepared);
  if (proto.id().empty()) prepared.request.id = front_.NextRequestId();
  prepared.request.deadline = front_.DeadlineOf(*context, request->timeout);
  reactor->Describe(InferResponses(proto.model_name(), proto.id(), *request));
  front_.calls().Add(call);  // not before: from here on it can be ended by others
  front_.Start(call, *opened->model, opened->caller, std::move(prepared));
}

grpc::ServerUnaryReactor* KserveService::ModelInfer(Context* context, const Bytes* request,
                                                    Bytes* response) {
  auto* reactor = new InferReactor(front_, context, response);
  Start(reactor, context, *request);
  return reactor;
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* KserveService::ModelStreamInfer(
    Context* context) {
  return new InferStream(front_, port_, context);
}

// ---- the others: a request in, its Answer out

absl::StatusOr<const ServedModel*> KserveService::Find(const std::string& name,
                                                       const std::string& version) const {
  const ServedModel* model = front_.serving().model();  // while draining, too
  if (model == nullptr) return front_.Ready().status();
  RETURN_IF_ERROR(CheckModel(name, version, FactsOf(*model)));
  return model;
}

absl::StatusOr<inference::ServerLiveResponse> KserveService::Answer(
    const inference::ServerLiveRequest&) const {
  inference::ServerLiveResponse out;
  out.set_live(true);
  return out;
}

absl::StatusOr<inference::ServerReadyResponse> KserveService::Answer(
    const inference::ServerReadyRequest&) const {
  inference::ServerReadyResponse out;
  out.set_ready(front_.serving().announced() == Serving::State::kReady);
  return out;
}

absl::StatusOr<inference::ModelReadyResponse> KserveService::Answer(
    const inference::ModelReadyRequest& request) const {
  ModelFacts facts;
  facts.name = front_.config().served_model_name;  // known while loading, too
  if (const ServedModel* model = front_.serving().model(); model != nullptr) {
    facts.name = model->name;
  }
  // Asked without a key, so that the served name is not told.
  const absl::Status known = CheckModel(request.name(), request.version(), facts);
  if (absl::IsNotFound(known)) {
    return NotFound("name: {} is not served here", Quoted(request.name()));
  }
  RETURN_IF_ERROR(known);
  inference::ModelReadyResponse out;
  out.set_ready(front_.serving().announced() == Serving::State::kReady);
  return out;
}

absl::StatusOr<inference::ServerMetadataResponse> KserveService::Answer(
    const inference::ServerMetadataRequest&) const {
  inference::ServerMetadataResponse out;
  out.set_name("quantd");
  out.set_version(kVersion);
  for (const char* extension :
       {"model_configuration", "model_repository", "parameters", "schedule_policy", "statistics"}) {
    out.add_extensions(extension);
  }
  return out;
}

absl::StatusOr<inference::ModelMetadataResponse> KserveService::Answer(
    const inference::ModelMetadataRequest& request) const {
  RETURN_IF_ERROR(Find(request.name(), request.version()).status());
  return ToMetadata(request.name());
}

absl::StatusOr<inference::ModelConfigResponse> KserveService::Answer(
    const inference::ModelConfigRequest& request) const {
  ASSIGN_OR_RETURN(const ServedModel* model, Find(request.name(), request.version()));
  inference::ModelConfigResponse out;
  *out.mutable_config() = ToConfig(request.name(), model->name);
  return out;
}

absl::StatusOr<inference::ModelStatisticsResponse> KserveService::Answer(
    const inference::ModelStatisticsRequest& request) const {
  const ServedModel* model = front_.serving().model();
  if (model == nullptr) return front_.Ready().status();
  const std::string& name = request.name().empty() ? model->name : request.name();
  RETURN_IF_ERROR(CheckModel(name, request.version(), FactsOf(*model)));
  inference::ModelStatisticsResponse out;
  *out.add_model_stats() =
      ToStatistics(name, model->statistics != nullptr ? model->statistics->Read()
                                                      : ServingStatistics::Snapshot());
  return out;
}

absl::StatusOr<inference::RepositoryIndexResponse> KserveService::Answer(
    const inference::RepositoryIndexRequest& request) const {
  if (!request.repository_name().empty()) {
    return NotFound("repository_name: {} is not known, allowed: \"\"",
                    Quoted(request.repository_name()));
  }
  inference::RepositoryIndexResponse out;
  const Serving::State state = front_.serving().announced();
  if (request.ready() && state != Serving::State::kReady) return out;
  const std::string& served = front_.config().served_model_name;
  for (const std::string& name : {served, UnaryName(served)}) {
    auto* model = out.add_models();
    model->set_name(name);
    model->set_version(kModelVersion);
    switch (state) {
      case Serving::State::kLoading: model->set_state("LOADING"); break;
      case Serving::State::kReady: model->set_state("READY"); break;
      case Serving::State::kDraining: model->set_state("UNAVAILABLE"); break;
    }
    model->set_reason(Message(front_.Ready().status()));
  }
  return out;
}

template <class Request>
absl::Status KserveService::Reply(const Context& context, std::optional<Access> access,
                                  const Bytes& bytes, Bytes* response) const {
  if (access.has_value()) RETURN_IF_ERROR(front_.Identify(context, *access, port_).status());
  Request request;
  RETURN_IF_ERROR(ParseMessage(bytes, &request));
  ASSIGN_OR_RETURN(const auto answer, Answer(request));
  *response = SerializeMessage(answer);
  return absl::OkStatus();
}

template <class Request>
grpc::ServerUnaryReactor* KserveService::ReplyNow(Context* context, std::optional<Access> access,
                                                  const Bytes* request, Bytes* response) const {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(Reply<Request>(*context, access, *request, response)));
  return reactor;
}

// Probes and what says that a server is one need no caller.
grpc::ServerUnaryReactor* KserveService::ServerLive(Context* context, const Bytes* request,
                                                    Bytes* response) {
  return ReplyNow<inference::ServerLiveRequest>(context, std::nullopt, request, response);
}

grpc::ServerUnaryReactor* KserveService::ServerReady(Context* context, const Bytes* request,
                                                     Bytes* response) {
  return ReplyNow<inference::ServerReadyRequest>(context, std::nullopt, request, response);
}

grpc::ServerUnaryReactor* KserveService::ModelReady(Context* context, const Bytes* request,
                                                    Bytes* response) {
  return ReplyNow<inference::ModelReadyRequest>(context, std::nullopt, request, response);
}

grpc::ServerUnaryReactor* KserveService::ServerMetadata(Context* context, const Bytes* request,
                                                        Bytes* response) {
  return ReplyNow<inference::ServerMetadataRequest>(context, std::nullopt, request, response);
}

grpc::ServerUnaryReactor* KserveService::ModelMetadata(Context* context, const Bytes* request,
                                                       Bytes* response) {
  return ReplyNow<inference::ModelMetadataRequest>(context, Access::kModel, request, response);
}

grpc::ServerUnaryReactor* KserveService::ModelConfig(Context* context, const Bytes* request,
                                                     Bytes* response) {
  return ReplyNow<inference::ModelConfigRequest>(context, Access::kModel, request, response);
}

grpc::ServerUnaryReactor* KserveService::ModelStatistics(Context* context, const Bytes* request,
                                                         Bytes* response) {
  return ReplyNow<inference::ModelStatisticsRequest>(context, Access::kAdmin, request, response);
}

grpc::ServerUnaryReactor* KserveService::RepositoryIndex(Context* context, const Bytes* request,
                                                         Bytes* response) {
  return ReplyNow<inference::RepositoryIndexRequest>(context, Access::kAdmin, request, response);
}

}  // namespace quantd::kserve

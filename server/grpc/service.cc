// The six methods and their reactors. A reactor lives from its call's start to OnDone, which
// deletes it.
#include "server/grpc/service.h"

#include <grpcpp/grpcpp.h>

#include <type_traits>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/error_details.h"
#include "server/grpc/messages.h"
#include "server/version.h"

namespace quantd {
namespace {

// What is about the server itself is the administrators'.
template <class Request>
constexpr Access AccessOf =
    std::is_same_v<Request, v1::GetServerInfoRequest> ? Access::kAdmin : Access::kModel;

}  // namespace

// A call that generates: what its two reactors share. `Base` is gRPC's.
template <class Base>
class InferenceService::GenerateReactor : public Base, public GenerateCall::Port {
 public:
  GenerateReactor(InferenceService* service, grpc::CallbackServerContext* context, bool streaming)
      : service_(service),
        context_(context),
        call_(std::make_shared<GenerateCall>(
            this, streaming, service->front_.config().limits.stream_backlog_tokens)) {}
  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  void Describe(std::string request_id, bool with_logprobs) {
    request_id_ = std::move(request_id);
    with_logprobs_ = with_logprobs;
  }

  void Abort() override { context_->TryCancel(); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->Detach();
    service_->front_.calls().Remove(call_);
    delete this;
  }

 protected:
  InferenceService* service_;
  grpc::CallbackServerContext* context_;
  std::shared_ptr<GenerateCall> call_;
  std::string request_id_;
  bool with_logprobs_ = false;
};

class InferenceService::StreamReactor
    : public GenerateReactor<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  StreamReactor(InferenceService* service, grpc::CallbackServerContext* context)
      : GenerateReactor(service, context, true) {}

  void Write(RequestUpdate update) override {
    buffer_ = SerializeMessage(ToStreamResponse(request_id_, std::move(update), with_logprobs_));
    StartWrite(&buffer_);
  }
  void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
              bool retry_pushback) override {
    const grpc::Status end = service_->front_.EndOf(context_, status, retry_pushback);
    if (updates.empty()) return ServerWriteReactor::Finish(end);
    // Never with a write in flight (GenerateCall::Pump), so the buffer is free.
    buffer_ =
        SerializeMessage(ToStreamResponse(request_id_, std::move(updates[0]), with_logprobs_));
    StartWriteAndFinish(&buffer_, grpc::WriteOptions(), end);
  }
  void OnWriteDone(bool ok) override { call_->OnWriteDone(ok); }

 private:
  grpc::ByteBuffer buffer_;  // of the write in flight
};

class InferenceService::UnaryReactor : public GenerateReactor<grpc::ServerUnaryReactor> {
 public:
  UnaryReactor(InferenceService* service, grpc::CallbackServerContext* context,
               grpc::ByteBuffer* response)
      : GenerateReactor(service, context, false), response_(response) {}

  void Write(RequestUpdate) override {}  // a call that collects is only finished
  void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
              bool retry_pushback) override {
    if (!updates.empty()) {
      *response_ = SerializeMessage(ToResponse(request_id_, std::move(updates), with_logprobs_));
    }
    ServerUnaryReactor::Finish(service_->front_.EndOf(context_, status, retry_pushback));
  }

 private:
  grpc::ByteBuffer* response_;
};

// A unary call that a worker answers. What its key has at once includes answers that were not
// taken.
class InferenceService::DeferredReactor : public grpc::ServerUnaryReactor {
 public:
  DeferredReactor(Front& front, grpc::CallbackServerContext* context)
      : front_(front), watch_(std::make_shared<StallWatch>(context)) {
    front_.answers().Add(watch_);
  }
  /// `key` has begun the call; may be null.
  void Begun(std::shared_ptr<KeyUse> key) { key_ = std::move(key); }
  void Answer(const grpc::Status& status) {
    watch_->Begin();
    Finish(status);
  }
  void OnDone() override {
    watch_->Detach();
    front_.answers().Remove(watch_);
    if (key_ != nullptr) key_->End(1);
    delete this;
  }

 private:
  Front& front_;
  const std::shared_ptr<StallWatch> watch_;
  std::shared_ptr<KeyUse> key_;
};

template <class Reactor>
void InferenceService::Start(Reactor* reactor, grpc::CallbackServerContext* context,
                             const grpc::ByteBuffer& bytes) {
  // A copy: after the request is on its way the reactor may be gone at any time.
  const std::shared_ptr<GenerateCall> call = reactor->call();
  absl::StatusOr<Front::Opened> opened = front_.Open(*context, port_);
  if (!opened.ok()) return call->Fail(opened.status());
  std::string id;
  const auto refuse = [&](const absl::Status& status) {
    front_.LogRefusal(id, opened->caller, status);
    call->Fail(status);
  };
  v1::GenerateRequest proto;
  if (const absl::Status s = ParseMessage(bytes, &proto); !s.ok()) return refuse(s);
  id = proto.request_id();
  absl::StatusOr<PreparedRequest> prepared =
      ToPreparedRequest(std::move(proto), FactsOf(*opened->model));
  if (!prepared.ok()) return refuse(prepared.status());
  Request& request = prepared->request;
  if (request.id.empty()) request.id = front_.NextRequestId();
  request.deadline = front_.DeadlineOf(*context);
  reactor->Describe(request.id, request.sampling.logprobs >= 0);
  front_.calls().Add(call);  // not before: from here on it can be ended by others
  front_.Start(call, *opened->model, opened->caller, *std::move(prepared));
}

grpc::ServerUnaryReactor* InferenceService::Generate(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  auto* reactor = new UnaryReactor(this, context, response);
  Start(reactor, context, *request);
  return reactor;
}

grpc::ServerWriteReactor<grpc::ByteBuffer>* InferenceService::GenerateStream(
    grpc::CallbackServerContext* context, const grpc::ByteBuffer* request) {
  auto* reactor = new StreamReactor(this, context);
  Start(reactor, context, *request);
  return reactor;
}

// ---- unary methods: a request in, its Answer out

absl::StatusOr<v1::TokenizeResponse> InferenceService::Answer(
    const v1::TokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const ServedModel* model, front_.Ready());
  RETURN_IF_ERROR(CheckModelName(request.model(), FactsOf(*model)));
  const bool add_special = !request.has_add_special_tokens() || request.add_special_tokens();
  const absl::StatusOr<std::vector<int32_t>> ids =
      model->tokenizer->Encode(request.text(), add_special);
  if (!ids.ok()) return WithField(Annotate(ids.status(), "text"), "text");
  v1::TokenizeResponse out;
  out.mutable_token_ids()->Add(ids->begin(), ids->end());
  return out;
}

absl::StatusOr<v1::DetokenizeResponse> InferenceService::Answer(
    const v1::DetokenizeRequest& request) const {
  ASSIGN_OR_RETURN(const ServedModel* model, front_.Ready());
  const ModelFacts facts = FactsOf(*model);
  RETURN_IF_ERROR(CheckModelName(request.model(), facts));
  RETURN_IF_ERROR(CheckTokenIds(request.token_ids(), facts.vocab_size, "token_ids"));
  const bool skip_special = !request.has_skip_special_tokens() || request.skip_special_tokens();
  std::string text = model->tokenizer->Decode(
      {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())}, skip_special);
  // A few bytes of request can be the ids of very long tokens.
  const auto most = static_cast<size_t>(front_.config().limits.max_message_bytes);
  if (text.size() > most) {
    return InvalidField("token_ids",
                        "their text has {} bytes, allowed: {} (limits.max_message_bytes)",
                        text.size(), most);
  }
  v1::DetokenizeResponse out;
  out.set_text(std::move(text));
  return out;
}

absl::StatusOr<v1::GetModelInfoResponse> InferenceService::Answer(
    const v1::GetModelInfoRequest& request) const {
  const ServedModel* model = front_.serving().model();  // while draining, too
  if (model == nullptr) return front_.Ready().status();
  RETURN_IF_ERROR(CheckModelName(request.model(), FactsOf(*model)));
  return ToModelInfo(*model);
}

absl::StatusOr<v1::GetServerInfoResponse> InferenceService::Answer(
    const v1::GetServerInfoRequest&) const {
  const ServerConfig& config = front_.config();
  v1::GetServerInfoResponse out;
  out.set_version(kVersion);
  out.set_uptime_seconds(front_.serving().uptime_seconds());
  const Serving::State state = front_.serving().announced();
  out.set_state(state == Serving::State::kLoading ? v1::SERVER_STATE_LOADING
                : state == Serving::State::kReady ? v1::SERVER_STATE_READY
                                                  : v1::SERVER_STATE_DRAINING);
  v1::ServerLimits* limits = out.mutable_limits();
  limits->set_max_message_bytes(config.limits.max_message_bytes);
  limits->set_max_num_seqs(static_cast<int32_t>(config.scheduler.max_num_seqs));
  limits->set_max_num_batched_tokens(static_cast<int32_t>(config.scheduler.max_num_batched_tokens));
  limits->set_max_queued_requests(static_cast<int32_t>(config.limits.max_queued_requests));
  limits->set_max_queued_tokenizations(
      static_cast<int32_t>(config.limits.max_queued_tokenizations));
  limits->set_stall_seconds(config.timeouts.stall_seconds);
  limits->set_max_request_seconds(config.timeouts.max_request_seconds);
  out.set_live_requests(front_.calls().size());
  out.set_load_progress(front_.serving().load_progress());
  if (const ServedModel* model = front_.serving().model(); model != nullptr) {
    if (model->backend != nullptr) out.set_device(model->backend->info().description);
    ToProto(model->engine->Stats(), out.mutable_stats());
  }
  return out;
}

template <class Request>
absl::Status InferenceService::Reply(const grpc::ByteBuffer& bytes,
                                     grpc::ByteBuffer* response) const {
  Request request;
  RETURN_IF_ERROR(ParseMessage(bytes, &request));
  ASSIGN_OR_RETURN(const auto answer, Answer(request));
  *response = SerializeMessage(answer);
  return absl::OkStatus();
}

template <class Request>
grpc::ServerUnaryReactor* InferenceService::ReplyNow(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) const {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  const absl::Status allowed = front_.Identify(*context, AccessOf<Request>, port_).status();
  reactor->Finish(ToGrpc(allowed.ok() ? Reply<Request>(*request, response) : allowed));
  return reactor;
}

template <class Request>
grpc::ServerUnaryReactor* InferenceService::ReplyOnWorker(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  auto* reactor = new DeferredReactor(front_, context);
  const absl::StatusOr<Caller> caller = front_.Identify(*context, AccessOf<Request>, port_);
  if (!caller.ok()) {
    reactor->Answer(ToGrpc(caller.status()));
    return reactor;
  }
  // It counts among what the key has at once; a text that is only tokenized costs no tokens.
  absl::Status begun =
      caller->key == nullptr ? absl::OkStatus() : caller->key->Begin(1, Clock::now());
  if (begun.ok()) {
    reactor->Begun(caller->key);
    begun = front_.OnWorker(*caller, [this, reactor, context, bytes = *request, response] {
      const absl::Status status = context->IsCancelled() ? Cancelled("cancelled by the client")
                                                         : Reply<Request>(bytes, response);
      reactor->Answer(ToGrpc(status));
    });
  }
  if (!begun.ok()) reactor->Answer(front_.EndOf(context, begun, true));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) {
  return ReplyOnWorker<v1::TokenizeRequest>(context, request, response);
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request,
                                                       grpc::ByteBuffer* response) {
  return ReplyOnWorker<v1::DetokenizeRequest>(context, request, response);
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request,
                                                         grpc::ByteBuffer* response) {
  return ReplyNow<v1::GetModelInfoRequest>(context, request, response);
}

grpc::ServerUnaryReactor* InferenceService::GetServerInfo(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  return ReplyNow<v1::GetServerInfoRequest>(context, request, response);
}

}  // namespace quantd

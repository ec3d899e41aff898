// The six methods and their reactors. A reactor lives from its call's start to OnDone, which
// deletes it.
#include "server/grpc/service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <utility>

#include "kernels/status.h"
#include "server/grpc/error_details.h"
#include "server/version.h"

namespace quantd {
namespace {

template <class Proto>
absl::Status Parse(const grpc::ByteBuffer& bytes, Proto* proto) {
  grpc::ByteBuffer copy = bytes;  // shares the slices
  if (copy.Valid() && grpc::SerializationTraits<Proto>::Deserialize(&copy, proto).ok()) {
    return absl::OkStatus();
  }
  return InvalidArgument("malformed request: not a {}, or a string that is not UTF-8",
                         proto->GetTypeName());
}

grpc::ByteBuffer Serialize(const google::protobuf::MessageLite& proto) {
  const std::string bytes = proto.SerializeAsString();
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

// The earlier of the call's own deadline and the server's limit.
std::optional<Clock::time_point> DeadlineOf(const grpc::CallbackServerContext& context,
                                            double max_request_seconds) {
  std::optional<Clock::time_point> deadline;
  const auto wall = context.deadline();
  if (wall != std::chrono::system_clock::time_point::max()) {
    // Clamped: a deadline years away must not overflow.
    const auto left = std::min<std::chrono::system_clock::duration>(
        wall - std::chrono::system_clock::now(), std::chrono::hours(24 * 365));
    deadline = Clock::now() + left;
  }
  if (max_request_seconds > 0) {
    const auto limit = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                          std::chrono::duration<double>(max_request_seconds));
    deadline = deadline.has_value() ? std::min(*deadline, limit) : limit;
  }
  return deadline;
}

}  // namespace

// A call that generates: what its two reactors share. `Base` is gRPC's.
template <class Base>
class InferenceService::GenerateReactor : public Base, public GenerateCall::Port {
 public:
  GenerateReactor(InferenceService* service, grpc::CallbackServerContext* context, bool streaming)
      : service_(service),
        context_(context),
        call_(std::make_shared<GenerateCall>(this, streaming,
                                             service->config_.limits.stream_backlog_tokens)) {
    service_->registry_.Add(call_);
  }
  const std::shared_ptr<GenerateCall>& call() const { return call_; }
  void Describe(std::string request_id, bool with_logprobs) {
    request_id_ = std::move(request_id);
    with_logprobs_ = with_logprobs;
  }

  void Abort() override { context_->TryCancel(); }
  void OnCancel() override { call_->OnCancel(); }
  void OnDone() override {
    call_->Detach();
    service_->registry_.Remove(call_);
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
    buffer_ = Serialize(ToStreamResponse(request_id_, std::move(update), with_logprobs_));
    StartWrite(&buffer_);
  }
  void Finish(std::vector<RequestUpdate> updates, const absl::Status& status,
              bool retry_pushback) override {
    const grpc::Status end = service_->EndOf(context_, status, retry_pushback);
    if (updates.empty()) return ServerWriteReactor::Finish(end);
    // Never with a write in flight (GenerateCall::Pump), so the buffer is free.
    buffer_ = Serialize(ToStreamResponse(request_id_, std::move(updates[0]), with_logprobs_));
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
      *response_ = Serialize(ToResponse(request_id_, std::move(updates), with_logprobs_));
    }
    ServerUnaryReactor::Finish(service_->EndOf(context_, status, retry_pushback));
  }

 private:
  grpc::ByteBuffer* response_;
};

// A unary call that a worker finishes.
class InferenceService::DeferredReactor : public grpc::ServerUnaryReactor {
 public:
  void OnDone() override { delete this; }
};

InferenceService::InferenceService(const Serving& serving, const ServerConfig& config)
    : serving_(serving),
      config_(config),
      watchdog_([this] { Watch(); }),
      pool_(std::make_unique<WorkerPool>(
          static_cast<int>(config.limits.tokenizer_threads),
          static_cast<size_t>(config.limits.max_queued_tokenizations))) {}

InferenceService::~InferenceService() {
  {
    std::lock_guard lock(watch_mutex_);
    stopping_ = true;
  }
  watch_wake_.notify_all();
  watchdog_.join();
}

void InferenceService::Watch() {
  const auto limit = std::chrono::duration_cast<Clock::duration>(
      std::chrono::duration<double>(config_.timeouts.stall_seconds));
  const auto tick = std::clamp<Clock::duration>(limit / 4, std::chrono::milliseconds(10),
                                                std::chrono::seconds(1));
  std::unique_lock lock(watch_mutex_);
  while (!watch_wake_.wait_for(lock, tick, [this] { return stopping_; })) {
    lock.unlock();
    const Clock::time_point now = Clock::now();
    for (const auto& call : registry_.Snapshot()) call->CheckStall(now, limit);
    lock.lock();
  }
}

void InferenceService::CancelAll(const absl::Status& status) {
  for (const auto& call : registry_.Snapshot()) call->Fail(status);
}

absl::StatusOr<const ServedModel*> InferenceService::Ready() const {
  switch (serving_.state()) {
    case Serving::State::kLoading:
      return Unavailable("the model is loading ({:.0f}%)", 100.0 * serving_.load_progress());
    case Serving::State::kDraining: return Unavailable("the server is draining");
    case Serving::State::kReady: break;
  }
  return serving_.model();
}

grpc::Status InferenceService::EndOf(grpc::CallbackServerContext* context,
                                     const absl::Status& status, bool retry_pushback) const {
  if (!retry_pushback) return ToGrpc(status);
  const int64_t milliseconds = config_.limits.retry_pushback_ms;
  context->AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(milliseconds));
  return ToGrpc(status, milliseconds);
}

absl::Status InferenceService::TooManyTexts() const {
  return ResourceExhausted("{} texts are waiting to be tokenized, allowed: {}",
                           config_.limits.max_queued_tokenizations,
                           config_.limits.max_queued_tokenizations);
}

template <class Reactor>
void InferenceService::Start(Reactor* reactor, grpc::CallbackServerContext* context,
                             const grpc::ByteBuffer& bytes) {
  // A copy: after the request is on its way the reactor may be gone at any time.
  const std::shared_ptr<GenerateCall> call = reactor->call();
  const absl::StatusOr<const ServedModel*> model = Ready();
  if (!model.ok()) return call->Fail(model.status());
  v1::GenerateRequest proto;
  if (const absl::Status s = Parse(bytes, &proto); !s.ok()) return call->Fail(s);
  absl::StatusOr<PreparedRequest> prepared = ToPreparedRequest(std::move(proto), FactsOf(**model));
  if (!prepared.ok()) return call->Fail(prepared.status());
  Request& request = prepared->request;
  if (request.id.empty()) request.id = fmt::format("r{}", next_id_.fetch_add(1));
  request.deadline = DeadlineOf(*context, config_.timeouts.max_request_seconds);
  reactor->Describe(request.id, request.sampling.logprobs >= 0);

  if (!prepared->has_text && prepared->messages.empty()) {
    return call->Submit((*model)->engine, std::move(request));
  }
  auto job = [call, served = *model, p = std::make_shared<PreparedRequest>(std::move(*prepared))] {
    if (!call->active()) return;
    absl::StatusOr<std::vector<int32_t>> ids =
        EncodePrompt(*p, *served->tokenizer, served->chat_template);
    if (!ids.ok()) return call->Fail(ids.status());
    p->request.prompt_ids = std::move(*ids);
    call->Submit(served->engine, std::move(p->request));
  };
  if (!pool_->Submit(std::move(job))) call->Fail(TooManyTexts(), true);
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
  ASSIGN_OR_RETURN(const ServedModel* model, Ready());
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
  ASSIGN_OR_RETURN(const ServedModel* model, Ready());
  const ModelFacts facts = FactsOf(*model);
  RETURN_IF_ERROR(CheckModelName(request.model(), facts));
  RETURN_IF_ERROR(CheckTokenIds(request.token_ids(), facts.vocab_size, "token_ids"));
  const bool skip_special = !request.has_skip_special_tokens() || request.skip_special_tokens();
  v1::DetokenizeResponse out;
  out.set_text(model->tokenizer->Decode(
      {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())}, skip_special));
  return out;
}

absl::StatusOr<v1::GetModelInfoResponse> InferenceService::Answer(
    const v1::GetModelInfoRequest& request) const {
  const ServedModel* model = serving_.model();  // while draining, too
  if (model == nullptr) return Ready().status();
  RETURN_IF_ERROR(CheckModelName(request.model(), FactsOf(*model)));
  return ToModelInfo(*model);
}

absl::StatusOr<v1::GetServerInfoResponse> InferenceService::Answer(
    const v1::GetServerInfoRequest&) const {
  v1::GetServerInfoResponse out;
  out.set_version(kVersion);
  out.set_uptime_seconds(serving_.uptime_seconds());
  const Serving::State state = serving_.state();
  out.set_state(state == Serving::State::kLoading ? v1::SERVER_STATE_LOADING
                : state == Serving::State::kReady ? v1::SERVER_STATE_READY
                                                  : v1::SERVER_STATE_DRAINING);
  v1::ServerLimits* limits = out.mutable_limits();
  limits->set_max_message_bytes(config_.limits.max_message_bytes);
  limits->set_max_num_seqs(static_cast<int32_t>(config_.scheduler.max_num_seqs));
  limits->set_max_num_batched_tokens(
      static_cast<int32_t>(config_.scheduler.max_num_batched_tokens));
  limits->set_max_queued_requests(static_cast<int32_t>(config_.limits.max_queued_requests));
  limits->set_max_queued_tokenizations(
      static_cast<int32_t>(config_.limits.max_queued_tokenizations));
  limits->set_stall_seconds(config_.timeouts.stall_seconds);
  limits->set_max_request_seconds(config_.timeouts.max_request_seconds);
  out.set_live_requests(live_calls());
  out.set_load_progress(serving_.load_progress());
  if (const ServedModel* model = serving_.model(); model != nullptr) {
    if (model->backend != nullptr) out.set_device(model->backend->info().description);
    ToProto(model->engine->Stats(), out.mutable_stats());
  }
  return out;
}

template <class Request>
absl::Status InferenceService::Reply(const grpc::ByteBuffer& bytes,
                                     grpc::ByteBuffer* response) const {
  Request request;
  RETURN_IF_ERROR(Parse(bytes, &request));
  ASSIGN_OR_RETURN(const auto answer, Answer(request));
  *response = Serialize(answer);
  return absl::OkStatus();
}

template <class Request>
grpc::ServerUnaryReactor* InferenceService::ReplyNow(grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer* request,
                                                     grpc::ByteBuffer* response) const {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(Reply<Request>(*request, response)));
  return reactor;
}

template <class Request>
grpc::ServerUnaryReactor* InferenceService::ReplyOnWorker(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request,
                                                          grpc::ByteBuffer* response) {
  auto* reactor = new DeferredReactor();
  const bool queued = pool_->Submit([this, reactor, context, bytes = *request, response] {
    reactor->Finish(ToGrpc(context->IsCancelled() ? Cancelled("cancelled by the client")
                                                  : Reply<Request>(bytes, response)));
  });
  if (!queued) reactor->Finish(EndOf(context, TooManyTexts(), true));
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

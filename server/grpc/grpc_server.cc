// Building and ending the gRPC server. The rules behind the settings were measured on gRPC 1.51.
#include "server/grpc/grpc_server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/resource_quota.h>
#include <spdlog/spdlog.h>

#include <cmath>
#include <mutex>

#include "kernels/status.h"
#include "server/grpc/service.h"
#include "server/kserve/service.h"
#include "server/security/tls.h"

namespace quantd {
namespace {

// The reflection library adds itself to every server of the process that links it; this takes it
// out.
class WithoutReflection : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

// gRPC's and protobuf's own words (a malformed message makes protobuf print a line) go to our log,
// where a client cannot fill stderr with them.
void RedirectLibraryLogs() {
  static std::once_flag once;
  std::call_once(once, [] {
    google::protobuf::SetLogHandler(nullptr);
    gpr_set_log_function([](gpr_log_func_args* args) { spdlog::debug("grpc: {}", args->message); });
  });
}

int IntMilliseconds(double seconds) { return static_cast<int>(std::lround(seconds * 1000)); }

}  // namespace

struct GrpcServer::Impl {
  std::unique_ptr<TlsStore> tls;  // null without TLS
  std::unique_ptr<Front> front;
  // A service can be registered once: each port has its own, before one front.
  std::unique_ptr<InferenceService> service;
  std::unique_ptr<InferenceService> admin_service;
  std::unique_ptr<kserve::KserveService> kserve;
  std::unique_ptr<kserve::KserveService> admin_kserve;
  std::unique_ptr<grpc::Server> server;
  std::unique_ptr<grpc::Server> admin;
};

namespace {

void SayHealthy(grpc::Server& server, bool healthy) {
  for (const char* name : {"", "quantd.v1.Inference", "inference.GRPCInferenceService"}) {
    server.GetHealthCheckService()->SetServingStatus(name, healthy);
  }
}

// Starts a server of `services` and sets `*address` to where it listens.
absl::StatusOr<std::unique_ptr<grpc::Server>> StartOne(
    const ServerConfig& config, const char* key, const std::string& listen, bool reflection,
    const std::vector<grpc::Service*>& services,
    const std::shared_ptr<grpc::ServerCredentials>& credentials, std::string* address) {
  std::string host;
  int port = 0;
  RETURN_IF_ERROR(ParseAddress(listen, &host, &port));
  grpc::ServerBuilder builder;
  if (!reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  for (grpc::Service* service : services) builder.RegisterService(service);
  // A small compressed message can inflate past every limit before it is measured.
  for (const auto algorithm : {GRPC_COMPRESS_DEFLATE, GRPC_COMPRESS_GZIP}) {
    builder.SetCompressionAlgorithmSupportStatus(algorithm, false);
  }
  builder.SetMaxReceiveMessageSize(static_cast<int>(config.limits.max_message_bytes));
  grpc::ResourceQuota quota("quantd");
  quota.Resize(static_cast<size_t>(config.limits.memory_quota_bytes));
  quota.SetMaxThreads(32);  // of the synchronous part, which only reflection uses
  builder.SetResourceQuota(quota);
  const auto set = [&](const char* name, int64_t value) {
    builder.AddChannelArgument(name, static_cast<int>(value));
  };
  set(GRPC_ARG_MAX_METADATA_SIZE, config.limits.max_metadata_bytes);
  set(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.limits.max_concurrent_streams);
  set(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a second server on the port must fail, not share it
  set(GRPC_ARG_KEEPALIVE_TIME_MS, IntMilliseconds(config.timeouts.keepalive_seconds));
  set(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
  if (const double age = config.timeouts.max_connection_age_seconds; age > 0) {
    // The grace, in which calls that run may end, is endless unless told otherwise.
    set(GRPC_ARG_MAX_CONNECTION_AGE_MS, IntMilliseconds(age));
  }
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      IntMilliseconds(config.timeouts.min_ping_interval_seconds));
  int chosen = 0;
  builder.AddListeningPort(listen, credentials, &chosen);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || chosen == 0) {
    return Unavailable("{}: {} cannot be bound (in use, or not of this machine?)", key, listen);
  }
  SayHealthy(*server, false);  // it begins as SERVING
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  *address = fmt::format("{}:{}", host, chosen);
  return server;
}

}  // namespace

GrpcServer::GrpcServer() : impl_(std::make_unique<Impl>()) {}

GrpcServer::~GrpcServer() { Shutdown(std::chrono::milliseconds(0)); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ServerConfig& config,
                                                              const Serving& serving) {
  RedirectLibraryLogs();
  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::InsecureServerCredentials();
  std::unique_ptr<TlsStore> tls;
  if (config.tls.enabled()) {
    ASSIGN_OR_RETURN(tls, TlsStore::Load(config.tls));
    credentials = tls->Credentials();
  }
  std::unique_ptr<KeyRing> keys;
  if (!config.security.api_keys.empty()) {
    ASSIGN_OR_RETURN(keys, KeyRing::Load(config.security.api_keys));
  }
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();

  std::unique_ptr<GrpcServer> self(new GrpcServer());
  Impl& impl = *self->impl_;
  // What tells about the protocol is behind the same door as what tells about the server; the
  // library's reflection cannot ask for a key.
  const bool admin_port = !config.listen.admin.empty();
  const bool reflection = config.listen.reflection && !admin_port && keys == nullptr;
  impl.tls = std::move(tls);
  impl.front = std::make_unique<Front>(serving, config, std::move(keys), impl.tls.get());
  impl.service = std::make_unique<InferenceService>(*impl.front, Port::kClients);
  impl.kserve = std::make_unique<kserve::KserveService>(*impl.front, Port::kClients);
  ASSIGN_OR_RETURN(impl.server,
                   StartOne(config, "listen.grpc", config.listen.grpc, reflection,
                            {impl.service.get(), impl.kserve.get()}, credentials, &self->address_));
  if (admin_port) {
    impl.admin_service = std::make_unique<InferenceService>(*impl.front, Port::kAdmin);
    impl.admin_kserve = std::make_unique<kserve::KserveService>(*impl.front, Port::kAdmin);
    ASSIGN_OR_RETURN(impl.admin,
                     StartOne(config, "listen.admin", config.listen.admin, config.listen.reflection,
                              {impl.admin_service.get(), impl.admin_kserve.get()}, credentials,
                              &self->admin_address_));
  }
  return self;
}

void GrpcServer::SetHealthy(bool healthy) {
  for (const auto* server : {&impl_->server, &impl_->admin}) {
    if (*server != nullptr) SayHealthy(**server, healthy);
  }
}

void GrpcServer::FinishTexts(std::chrono::steady_clock::time_point until) {
  impl_->front->FinishTexts(until);
}

int64_t GrpcServer::live_calls() const { return impl_->front->calls().size(); }

void GrpcServer::CancelAll(const absl::Status& status) { impl_->front->CancelAll(status); }

CallCounts GrpcServer::counts() const {
  const Front& front = *impl_->front;
  CallCounts counts;
  counts.live = front.calls().size();
  counts.unauthenticated = front.unauthenticated();
  counts.forbidden = front.forbidden();
  counts.refused_texts = front.refused_texts();
  if (impl_->tls != nullptr) counts.tls_expires = impl_->tls->expires();
  if (front.keys() == nullptr) return counts;
  for (const std::shared_ptr<KeyUse>& use : front.keys()->All()) {
    const KeyUse::Counts c = use->counts();
    counts.by_key.push_back({use->key().name, c.requests, c.refused, c.tokens, c.live});
  }
  return counts;
}

void GrpcServer::Shutdown(std::chrono::milliseconds grace) {
  const auto deadline = std::chrono::system_clock::now() + grace;
  for (auto* server : {&impl_->server, &impl_->admin}) {
    if (*server == nullptr) continue;
    (*server)->Shutdown(deadline);
    (*server)->Wait();
    server->reset();
  }
}

}  // namespace quantd

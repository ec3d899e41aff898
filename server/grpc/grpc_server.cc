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
  std::unique_ptr<Front> front;
  std::unique_ptr<InferenceService> service;
  std::unique_ptr<kserve::KserveService> kserve;
  std::unique_ptr<grpc::Server> server;
};

GrpcServer::GrpcServer() : impl_(std::make_unique<Impl>()) {}

GrpcServer::~GrpcServer() { Shutdown(std::chrono::milliseconds(0)); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ServerConfig& config,
                                                              const Serving& serving) {
  RedirectLibraryLogs();
  std::string host;
  int port = 0;
  RETURN_IF_ERROR(ParseAddress(config.listen.grpc, &host, &port));
  std::unique_ptr<GrpcServer> self(new GrpcServer());
  self->impl_->front = std::make_unique<Front>(serving, config);
  self->impl_->service = std::make_unique<InferenceService>(*self->impl_->front);
  self->impl_->kserve = std::make_unique<kserve::KserveService>(*self->impl_->front);

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  if (!config.listen.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  builder.RegisterService(self->impl_->service.get());
  builder.RegisterService(self->impl_->kserve.get());
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
  set(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  set(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      IntMilliseconds(config.timeouts.min_ping_interval_seconds));
  int chosen = 0;
  builder.AddListeningPort(config.listen.grpc, grpc::InsecureServerCredentials(), &chosen);
  self->impl_->server = builder.BuildAndStart();
  if (self->impl_->server == nullptr || chosen == 0) {
    return Unavailable("listen.grpc: {} cannot be bound (in use, or not of this machine?)",
                       config.listen.grpc);
  }
  self->SetHealthy(false);
  if (host.find(':') != std::string::npos) host = "[" + host + "]";
  self->address_ = fmt::format("{}:{}", host, chosen);
  return self;
}

void GrpcServer::SetHealthy(bool healthy) {
  grpc::HealthCheckServiceInterface* health = impl_->server->GetHealthCheckService();
  health->SetServingStatus("", healthy);
  health->SetServingStatus("quantd.v1.Inference", healthy);
  health->SetServingStatus("inference.GRPCInferenceService", healthy);
}

int64_t GrpcServer::live_calls() const { return impl_->front->calls().size(); }

void GrpcServer::CancelAll(const absl::Status& status) { impl_->front->CancelAll(status); }

void GrpcServer::Shutdown(std::chrono::milliseconds grace) {
  if (impl_->server == nullptr) return;
  impl_->server->Shutdown(std::chrono::system_clock::now() + grace);
  impl_->server->Wait();
  impl_->server.reset();
}

}  // namespace quantd

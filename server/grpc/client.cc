// The client, on gRPC's synchronous stubs.
#include "server/grpc/client.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_interceptor.h>

#include <chrono>
#include <utility>

#include "grpc/health/v1/health.grpc.pb.h"
#include "kernels/status.h"
#include "quantd/v1/inference.grpc.pb.h"

namespace quantd {
namespace {

void SetTimeout(grpc::ClientContext& context, double seconds) {
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000)));
}

// Sends the API key with every call of a channel. gRPC's own call credentials would need TLS.
class KeyPresenter : public grpc::experimental::Interceptor {
 public:
  explicit KeyPresenter(const std::string& header) : header_(header) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->insert({"authorization", header_});
    }
    methods->Proceed();
  }

 private:
  const std::string& header_;
};

class KeyPresenterFactory : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit KeyPresenterFactory(const std::string& key) : header_("Bearer " + key) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(
      grpc::experimental::ClientRpcInfo*) override {
    return new KeyPresenter(header_);
  }

 private:
  const std::string header_;
};

}  // namespace

struct Client::Impl {
  std::string target;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> inference;
  std::unique_ptr<grpc::health::v1::Health::Stub> health;

  absl::Status ToAbsl(const grpc::Status& status) const {
    if (status.ok()) return absl::OkStatus();
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        target + ": " + status.error_message());
  }
};

std::shared_ptr<grpc::Channel> MakeChannel(const ChannelOptions& options) {
  grpc::ChannelArguments arguments;
  if (!options.service_config.empty()) arguments.SetServiceConfigJSON(options.service_config);
  // Otherwise gRPC gives channels to one address the same connection.
  if (options.own_connection) arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (options.encrypted()) {
    credentials = grpc::SslCredentials({options.tls_ca, options.tls_key, options.tls_certificate});
    if (!options.tls_server_name.empty()) {
      arguments.SetSslTargetNameOverride(options.tls_server_name);
    }
  }
  if (options.api_key.empty()) {
    return grpc::CreateCustomChannel(options.target, credentials, arguments);
  }
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  interceptors.push_back(std::make_unique<KeyPresenterFactory>(options.api_key));
  return grpc::experimental::CreateCustomChannelWithInterceptors(
      options.target, credentials, arguments, std::move(interceptors));
}

Client::Client(const ChannelOptions& options) : impl_(std::make_unique<Impl>()) {
  impl_->target = options.target;
  impl_->channel = MakeChannel(options);
  impl_->inference = v1::Inference::NewStub(impl_->channel);
  impl_->health = grpc::health::v1::Health::NewStub(impl_->channel);
}

Client::~Client() = default;

absl::Status Client::GenerateStream(
    const v1::GenerateRequest& request,
    const std::function<void(v1::GenerateStreamResponse)>& on_response) {
  grpc::ClientContext context;
  const auto reader = impl_->inference->GenerateStream(&context, request);
  while (true) {
    v1::GenerateStreamResponse response;
    if (!reader->Read(&response)) break;
    on_response(std::move(response));
  }
  return impl_->ToAbsl(reader->Finish());
}

absl::StatusOr<v1::GetModelInfoResponse> Client::GetModelInfo() {
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  RETURN_IF_ERROR(impl_->ToAbsl(impl_->inference->GetModelInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<v1::GetServerInfoResponse> Client::GetServerInfo(double timeout_seconds) {
  grpc::ClientContext context;
  SetTimeout(context, timeout_seconds);
  v1::GetServerInfoResponse response;
  RETURN_IF_ERROR(impl_->ToAbsl(impl_->inference->GetServerInfo(&context, {}, &response)));
  return response;
}

absl::StatusOr<v1::TokenizeResponse> Client::Tokenize(const std::string& text) {
  grpc::ClientContext context;
  v1::TokenizeRequest request;
  request.set_text(text);
  request.set_add_special_tokens(false);
  v1::TokenizeResponse response;
  RETURN_IF_ERROR(impl_->ToAbsl(impl_->inference->Tokenize(&context, request, &response)));
  return response;
}

absl::Status Client::CheckHealth(const std::string& service, double timeout_seconds) {
  grpc::ClientContext context;
  SetTimeout(context, timeout_seconds);
  grpc::health::v1::HealthCheckRequest request;
  grpc::health::v1::HealthCheckResponse response;
  request.set_service(service);
  const grpc::Status status = impl_->health->Check(&context, request, &response);
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return Unavailable("{}: no answer within {} s", impl_->target, timeout_seconds);
  }
  RETURN_IF_ERROR(impl_->ToAbsl(status));
  if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) return absl::OkStatus();
  return Unavailable("{}: {}", impl_->target,
                     grpc::health::v1::HealthCheckResponse::ServingStatus_Name(response.status()));
}

}  // namespace quantd

// Who may call what, over TCP: keys, administrators, TLS, mTLS, and files that are replaced under
// load. In process, on a fake engine.
#include <gmock/gmock.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "google/rpc/error_details.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "quantd/v1/inference.grpc.pb.h"
#include "server/security/api_keys.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/fake_server.h"
#include "tests/server/guarded_server.h"
#include "tests/server/security/certificates.h"

namespace quantd {
namespace {

using grpc::StatusCode;
using test::Authority;
using test::Certificate;
using test::Eventually;
using testing::HasSubstr;

class AccessTest : public test::FakeServerTest {
 protected:
  void Start(std::vector<std::string> overrides) {
    overrides.insert(overrides.begin(), {"security.reload_seconds=0.1", "tls.reload_seconds=1"});
    StartServer(std::move(overrides));
  }
  absl::Status StartFails(std::vector<std::string> overrides) {
    overrides.insert(overrides.begin(), {"model=fake", "listen.grpc=127.0.0.1:0"});
    return GrpcServer::Start(*LoadServerConfig("", overrides), serving_).status();
  }
  std::string Write(const std::string& name, const std::string& text) {
    testing_support::WriteFile(dir_.path() / name, text);
    return (dir_.path() / name).string();
  }
  // Files with these keys' entries, each followed by what it may.
  void Keys(const std::vector<std::pair<NewApiKey, std::string>>& entries) {
    std::string text = "keys:\n";
    for (const auto& [key, more] : entries) text += key.entry + more;
    keys_file_ = Write("keys.yaml", text);
  }

  // A connection of its own.
  std::shared_ptr<grpc::Channel> Channel(const std::string& address,
                                         const std::shared_ptr<grpc::ChannelCredentials>&
                                             credentials = grpc::InsecureChannelCredentials()) {
    return test::NewChannel(address, grpc::ChannelArguments(), credentials);
  }
  static void Present(grpc::ClientContext& context, const std::string& key) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(20));
    if (!key.empty()) context.AddMetadata("authorization", "Bearer " + key);
  }
  grpc::Status Generate(const std::shared_ptr<grpc::Channel>& channel, const std::string& key = "",
                        int32_t priority = 0) {
    grpc::ClientContext context;
    Present(context, key);
    v1::GenerateRequest request;
    request.set_text("hello");
    request.set_priority(priority);
    request.mutable_sampling()->set_max_tokens(4);
    v1::GenerateResponse response;
    return v1::Inference::NewStub(channel)->Generate(&context, request, &response);
  }
  grpc::Status Generate(const std::string& key = "", int32_t priority = 0) {
    return Generate(Channel(server_->address()), key, priority);
  }
  grpc::Status ServerInfo(const std::string& address, const std::string& key = "") {
    grpc::ClientContext context;
    Present(context, key);
    v1::GetServerInfoResponse response;
    return v1::Inference::NewStub(Channel(address))->GetServerInfo(&context, {}, &response);
  }
  grpc::Status Tokenize(const std::string& key = "") {
    grpc::ClientContext context;
    Present(context, key);
    v1::TokenizeRequest request;
    request.set_text("hi");
    v1::TokenizeResponse response;
    return v1::Inference::NewStub(Channel(server_->address()))
        ->Tokenize(&context, request, &response);
  }
  bool Healthy(const std::string& address) {
    grpc::ClientContext context;
    Present(context, "");
    grpc::health::v1::HealthCheckResponse response;
    return grpc::health::v1::Health::NewStub(Channel(address))->Check(&context, {}, &response).ok();
  }

  testing_support::TempDir dir_;
  std::string keys_file_;
};

TEST_F(AccessTest, OnlyKnownKeysGetIn) {
  const NewApiKey a = *MakeApiKey("a");
  Keys({{a, ""}});
  Start({"security.api_keys=" + keys_file_});
  EXPECT_TRUE(Generate(a.key).ok());
  EXPECT_TRUE(Tokenize(a.key).ok());
  const grpc::Status none = Generate();
  EXPECT_EQ(none.error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_THAT(none.error_message(), HasSubstr("authorization: Bearer KEY"));
  const grpc::Status wrong = Generate(a.key + "x");
  EXPECT_EQ(wrong.error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(wrong.error_message(), "the API key is not known");
  EXPECT_EQ(Tokenize().error_code(), StatusCode::UNAUTHENTICATED);
  EXPECT_TRUE(Healthy(server_->address())) << "probes have no keys";
  const CallCounts counts = server_->counts();
  EXPECT_EQ(counts.unauthenticated, 3);
  ASSERT_EQ(counts.by_key.size(), 1u);
  EXPECT_EQ(counts.by_key[0].requests, 2);
  EXPECT_EQ(counts.by_key[0].tokens, 5 + 4);
  EXPECT_EQ(counts.by_key[0].live, 0);
}

TEST_F(AccessTest, AKeyHasItsModelsItsShareAndItsPriority) {
  const NewApiKey a = *MakeApiKey("a"), b = *MakeApiKey("b");
  const NewApiKey c = *MakeApiKey("c");
  Keys({{a, "    weight: 3\n    min_priority: 5\n"}, {b, "    models: [another]\n"}, {c, ""}});
  Start({"security.api_keys=" + keys_file_});
  ASSERT_TRUE(Generate(a.key, -100).ok());
  EXPECT_EQ(engine_->last_request().tenant, "a");
  EXPECT_EQ(engine_->last_request().tenant_weight, 3);
  EXPECT_EQ(engine_->last_request().priority, 5);
  ASSERT_TRUE(Generate(a.key, 7).ok());
  EXPECT_EQ(engine_->last_request().priority, 7);
  ASSERT_TRUE(Generate(c.key, -100).ok());
  EXPECT_EQ(engine_->last_request().priority, 0) << "nobody goes before others unasked";
  const grpc::Status denied = Generate(b.key);
  EXPECT_EQ(denied.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(denied.error_message(), "the key b is not for this model");
  EXPECT_EQ(server_->counts().forbidden, 1);
}

TEST_F(AccessTest, AKeyBeyondItsQuotaIsToldWhenToTryAgain) {
  const NewApiKey a = *MakeApiKey("a"), b = *MakeApiKey("b");
  Keys({{a, "    max_concurrent_requests: 1\n"}, {b, "    tokens_per_minute: 6\n"}});
  Start({"security.api_keys=" + keys_file_, "limits.retry_pushback_ms=70"});
  engine_->Hold(true);
  const auto channel = Channel(server_->address());
  grpc::Status first;
  std::thread caller([&] { first = Generate(channel, a.key); });
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  EXPECT_EQ(Generate(a.key).error_code(), StatusCode::RESOURCE_EXHAUSTED);
  engine_->Hold(false);
  caller.join();
  EXPECT_TRUE(first.ok()) << first.error_message();
  ASSERT_TRUE(Eventually([&] { return server_->counts().by_key[0].live == 0; }));
  EXPECT_TRUE(Generate(a.key).ok());

  ASSERT_TRUE(Generate(b.key).ok());  // 5 + 4 tokens: 3 owed, which is half a minute
  grpc::ClientContext context;
  Present(context, b.key);
  v1::GenerateRequest request;
  request.set_text("hello");
  v1::GenerateResponse response;
  const grpc::Status refused =
      v1::Inference::NewStub(channel)->Generate(&context, request, &response);
  EXPECT_EQ(refused.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  const auto pushback = context.GetServerTrailingMetadata().find("grpc-retry-pushback-ms");
  ASSERT_NE(pushback, context.GetServerTrailingMetadata().end());
  const int ms = std::stoi(std::string(pushback->second.data(), pushback->second.size()));
  EXPECT_GT(ms, 0.7 * 40000 * 0.75);
  EXPECT_LE(ms, 40000 * 1.25);
  EXPECT_EQ(server_->counts().by_key[1].refused, 1);
}

TEST_F(AccessTest, APromptThatWasComputedIsPaidForWhoeverHungUp) {
  const NewApiKey a = *MakeApiKey("a");
  Keys({{a, ""}});
  Start({"security.api_keys=" + keys_file_});
  engine_->Hold(true);
  grpc::ClientContext context;
  Present(context, a.key);
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(100));
  v1::GenerateRequest request;
  request.set_text("hello");
  v1::GenerateResponse response;
  EXPECT_EQ(v1::Inference::NewStub(Channel(server_->address()))
                ->Generate(&context, request, &response)
                .error_code(),
            StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(Eventually([&] { return server_->counts().by_key[0].tokens == 5; }));
  engine_->Hold(false);
}

TEST_F(AccessTest, MoreOutputsThanAKeyMayHaveAreInvalid) {
  const NewApiKey a = *MakeApiKey("a");
  Keys({{a, "    max_concurrent_requests: 2\n"}});
  Start({"security.api_keys=" + keys_file_});
  v1::GenerateRequest request;
  request.set_text("hello");
  request.mutable_sampling()->set_max_tokens(4);
  const auto generate = [&](int32_t n, grpc::ClientContext* context) {
    Present(*context, a.key);
    request.mutable_sampling()->set_n(n);
    v1::GenerateResponse response;
    return v1::Inference::NewStub(Channel(server_->address()))
        ->Generate(context, request, &response);
  };
  grpc::ClientContext context;
  const grpc::Status invalid = generate(3, &context);
  EXPECT_EQ(invalid.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(invalid.error_message(),
            "sampling.n is 3, allowed: at most the 2 requests that the key a may have at once");
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0u);
  const auto detail = test::DetailOf<google::rpc::BadRequest>(invalid);
  ASSERT_EQ(detail.field_violations_size(), 1);
  EXPECT_EQ(detail.field_violations(0).field(), "sampling.n");
  const CallCounts counts = server_->counts();
  EXPECT_EQ(counts.by_key[0].refused, 0);
  EXPECT_EQ(counts.by_key[0].requests, 0);
  EXPECT_EQ(counts.by_key[0].live, 0);
}

TEST_F(AccessTest, TheSchemeIsTakenInAnyCase) {
  const NewApiKey a = *MakeApiKey("a");
  Keys({{a, ""}});
  Start({"security.api_keys=" + keys_file_});
  const auto tokenize = [&](const std::string& authorization) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", authorization);
    v1::TokenizeRequest request;
    v1::TokenizeResponse response;
    return v1::Inference::NewStub(Channel(server_->address()))
        ->Tokenize(&context, request, &response)
        .error_code();
  };
  for (const char* scheme : {"Bearer ", "bearer ", "BEARER ", "bEaReR   ", " Bearer "}) {
    EXPECT_EQ(tokenize(scheme + a.key), StatusCode::OK) << scheme;
  }
  for (const char* scheme : {"", "Bearer", "Basic ", "Bearer x "}) {
    EXPECT_EQ(tokenize(scheme + a.key), StatusCode::UNAUTHENTICATED) << scheme;
  }
}

TEST_F(AccessTest, AFloodOfTextsLeavesRoomForAnotherKeys) {
  const NewApiKey a = *MakeApiKey("a"), b = *MakeApiKey("b");
  Keys({{a, ""}, {b, ""}});
  Start({"security.api_keys=" + keys_file_, "limits.tokenizer_threads=1",
         "limits.max_queued_tokenizations=8"});
  tokenizer_.Block(true);
  std::vector<std::thread> callers;
  std::atomic<int> refused{0};
  for (int i = 0; i < 20; ++i) {
    callers.emplace_back([&] {
      if (Tokenize(a.key).error_code() == StatusCode::RESOURCE_EXHAUSTED) ++refused;
    });
  }
  // One is at work, and four wait: as many as are left.
  EXPECT_TRUE(Eventually([&] { return refused == 15; }));
  EXPECT_EQ(server_->counts().refused_texts, 15);
  grpc::Status of_b;
  std::thread b_caller([&] { of_b = Generate(b.key); });
  ASSERT_TRUE(Eventually([&] { return server_->counts().live == 1; }));
  tokenizer_.Block(false);
  b_caller.join();
  for (std::thread& caller : callers) caller.join();
  EXPECT_TRUE(of_b.ok()) << of_b.error_message();
  EXPECT_EQ(server_->counts().by_key[0].live, 0);
}

TEST_F(AccessTest, KeysAreReplacedWhileCallsGoOn) {
  const NewApiKey a = *MakeApiKey("a"), b = *MakeApiKey("b");
  Keys({{a, ""}});
  Start({"security.api_keys=" + keys_file_});
  engine_->Hold(true);
  const auto channel = Channel(server_->address());
  grpc::Status first;
  std::thread caller([&] { first = Generate(channel, a.key); });
  ASSERT_TRUE(Eventually([&] { return engine_->live() == 1; }));
  Keys({{b, ""}});
  ASSERT_TRUE(Eventually([&] { return Tokenize(b.key).ok(); }));
  EXPECT_EQ(Generate(a.key).error_code(), StatusCode::UNAUTHENTICATED);
  engine_->Hold(false);
  caller.join();
  EXPECT_TRUE(first.ok()) << "what had begun is finished: " << first.error_message();
  Write("keys.yaml", "broken");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_TRUE(Generate(b.key).ok());
}

TEST_F(AccessTest, WhatIsAboutTheServerIsTheAdministrators) {
  const NewApiKey user = *MakeApiKey("user"), admin = *MakeApiKey("admin");
  Keys({{user, ""}, {admin, "    admin: true\n"}});
  Start({"security.api_keys=" + keys_file_});
  EXPECT_TRUE(ServerInfo(server_->address(), admin.key).ok());
  const grpc::Status denied = ServerInfo(server_->address(), user.key);
  EXPECT_EQ(denied.error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(denied.error_message(), "the key user is not an administrator's");
}

TEST_F(AccessTest, TheAdminPortNeedsNoKeyAndTakesTheMethodsOffTheOther) {
  Start({"listen.admin=127.0.0.1:0"});
  EXPECT_TRUE(ServerInfo(server_->admin_address()).ok());
  EXPECT_TRUE(Healthy(server_->admin_address()));
  EXPECT_EQ(ServerInfo(server_->address()).error_code(), StatusCode::PERMISSION_DENIED);
  EXPECT_TRUE(Generate().ok());
}

TEST_F(AccessTest, ReflectionIsWhereAKeyIsNotNeeded) {
  const auto reflects = [&](const std::string& address) {
    grpc::ClientContext context;
    Present(context, "");
    grpc::GenericStub stub(Channel(address));
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareCall(
        &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
    call->StartCall(reinterpret_cast<void*>(1));
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    call->WritesDone(reinterpret_cast<void*>(2));
    queue.Next(&tag, &ok);
    grpc::Status status;
    call->Finish(&status, reinterpret_cast<void*>(3));
    queue.Next(&tag, &ok);
    return status.error_code() != StatusCode::UNIMPLEMENTED;
  };
  const NewApiKey a = *MakeApiKey("a");
  Keys({{a, ""}});
  Start({});
  EXPECT_TRUE(reflects(server_->address()));
  Start({"security.api_keys=" + keys_file_});
  EXPECT_FALSE(reflects(server_->address()));
  Start({"security.api_keys=" + keys_file_, "listen.admin=127.0.0.1:0"});
  EXPECT_FALSE(reflects(server_->address()));
  EXPECT_TRUE(reflects(server_->admin_address()));
}

// ---- TLS

class TlsTest : public AccessTest {
 protected:
  void WriteServer(const Certificate& certificate) {
    // As Kubernetes replaces a secret: both files at once, by a link to another folder.
    const std::string folder = "v" + std::to_string(++version_);
    std::filesystem::create_directory(dir_.path() / folder);
    Write(folder + "/tls.crt", certificate.certificate);
    Write(folder + "/tls.key", certificate.key);
    std::filesystem::create_directory_symlink(folder, dir_.path() / "next");
    std::filesystem::rename(dir_.path() / "next", dir_.path() / "now");
  }
  std::vector<std::string> Overrides() {
    return {"tls.certificate=" + (dir_.path() / "now/tls.crt").string(),
            "tls.key=" + (dir_.path() / "now/tls.key").string()};
  }
  std::shared_ptr<grpc::ChannelCredentials> Trusting(const Authority& authority,
                                                     const Certificate& own = {}) {
    return grpc::SslCredentials({authority.certificate(), own.key, own.certificate});
  }

  Authority authority_{"authority"};
  int version_ = 0;
};

TEST_F(TlsTest, ClientsTalkToTheServerOfTheirAuthorityOnly) {
  WriteServer(authority_.Sign("server"));
  Start(Overrides());
  EXPECT_TRUE(Generate(Channel(server_->address(), Trusting(authority_))).ok());
  Authority other("another");
  EXPECT_EQ(Generate(Channel(server_->address(), Trusting(other))).error_code(),
            StatusCode::UNAVAILABLE);
  EXPECT_EQ(Generate(Channel(server_->address())).error_code(), StatusCode::UNAVAILABLE)
      << "without TLS";
}

TEST_F(TlsTest, MutualTlsWantsACertificateOfTheClientsAuthority) {
  WriteServer(authority_.Sign("server"));
  Authority clients("clients");
  std::vector<std::string> overrides = Overrides();
  overrides.push_back("tls.client_ca=" + Write("clients.pem", clients.certificate()));
  Start(overrides);
  EXPECT_TRUE(
      Generate(Channel(server_->address(), Trusting(authority_, clients.Sign("client")))).ok());
  EXPECT_FALSE(Generate(Channel(server_->address(), Trusting(authority_))).ok());
  EXPECT_FALSE(
      Generate(Channel(server_->address(), Trusting(authority_, authority_.Sign("client")))).ok());
  EXPECT_FALSE(
      Generate(Channel(server_->address(), Trusting(authority_, clients.Sign("client", -10))))
          .ok());
}

TEST_F(TlsTest, ReplacingTheCertificateUnderLoadLosesNoRequest) {
  WriteServer(authority_.Sign("server"));
  Start(Overrides());
  std::atomic<bool> stop{false};
  std::atomic<int> done{0}, failed{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&, i] {
      // Some keep their connection, some make one for each call.
      auto channel = Channel(server_->address(), Trusting(authority_));
      while (!stop) {
        if (i % 2 == 1) channel = Channel(server_->address(), Trusting(authority_));
        ++(Generate(channel).ok() ? done : failed);
      }
    });
  }
  Authority second("second");
  ASSERT_TRUE(Eventually([&] { return done > 20; }));
  EXPECT_FALSE(Generate(Channel(server_->address(), Trusting(second))).ok());
  // The old authority's callers go on with their connections; new ones of theirs get a certificate
  // that theirs has signed too.
  for (int i = 0; i < 3; ++i) {
    WriteServer(authority_.Sign("server" + std::to_string(i)));
    std::this_thread::sleep_for(std::chrono::milliseconds(1200));
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failed, 0);
  EXPECT_GT(done, 50);
  // And it is the new files that are used.
  WriteServer(second.Sign("server"));
  EXPECT_TRUE(
      Eventually([&] { return Generate(Channel(server_->address(), Trusting(second))).ok(); }));
}

TEST_F(TlsTest, AFaultyRenewalLeavesTheCertificateInUse) {
  const Certificate first = authority_.Sign("server");
  WriteServer(first);
  Start(Overrides());
  const auto works = [&] {
    return Generate(Channel(server_->address(), Trusting(authority_))).ok();
  };
  ASSERT_TRUE(works());
  const std::optional<int64_t> expires = server_->counts().tls_expires;
  ASSERT_TRUE(expires.has_value());
  EXPECT_GT(*expires, time(nullptr));
  const Certificate others[] = {
      {.certificate = "garbage", .key = "garbage"},
      {.certificate = first.certificate, .key = authority_.Sign("another").key},
      authority_.Sign("server", -10)};  // has expired
  for (const Certificate& faulty : others) {
    WriteServer(faulty);
    std::this_thread::sleep_for(std::chrono::milliseconds(1200));
    EXPECT_TRUE(works());
    EXPECT_EQ(server_->counts().tls_expires, expires);
  }
  Authority second("second");
  WriteServer(second.Sign("server"));
  EXPECT_TRUE(
      Eventually([&] { return Generate(Channel(server_->address(), Trusting(second))).ok(); }));
}

TEST_F(TlsTest, SaysAtStartWhatIsWrongWithTheFiles) {
  const Certificate good = authority_.Sign("server"), expired = authority_.Sign("server", -10);
  const std::string certificate = Write("c.pem", good.certificate), key = Write("k.pem", good.key);
  const auto with = [&](const std::string& c, const std::string& k, const std::string& ca = "") {
    std::vector<std::string> overrides = {"tls.certificate=" + c, "tls.key=" + k};
    if (!ca.empty()) overrides.push_back("tls.client_ca=" + ca);
    return std::string(StartFails(overrides).message());
  };
  EXPECT_THAT(with(certificate + "x", key), HasSubstr("tls.certificate " + certificate + "x"));
  EXPECT_THAT(with(key, key), HasSubstr("no PEM certificate in it"));
  EXPECT_THAT(with(certificate, certificate), HasSubstr("no PEM key without a passphrase"));
  EXPECT_THAT(with(certificate, Write("other.pem", expired.key)),
              HasSubstr("is not the key of tls.certificate"));
  EXPECT_THAT(with(Write("old.pem", expired.certificate), key), HasSubstr("has expired"));
  EXPECT_THAT(with(certificate, key, key), HasSubstr("tls.client_ca"));
  EXPECT_THAT(with(dir_.path().string(), key), HasSubstr("not a regular file"));
  EXPECT_EQ(with(certificate, key), "");
  EXPECT_FALSE(LoadServerConfig("", {"model=m", "tls.key=k"}).ok());
  EXPECT_FALSE(LoadServerConfig("", {"model=m", "tls.client_ca=k"}).ok());
  EXPECT_EQ(StartFails({"security.api_keys=/none"}).code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace quantd

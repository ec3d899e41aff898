// The real server with TLS, keys and an administrators' port, and the real commands against it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/security/api_keys.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/process.h"
#include "tests/server/security/certificates.h"

namespace quantd {
namespace {

using test::RunQuantd;
using testing::HasSubstr;

TEST(AccessProcess, CommandsComeInWithCertificateAndKeyOnly) {
  testing_support::TempDir dir;
  const auto write = [&](const std::string& name, const std::string& text) {
    testing_support::WriteFile(dir.path() / name, text);
    return (dir.path() / name).string();
  };
  test::Authority authority("authority");
  const test::Certificate server_pair = authority.Sign("server"), own = authority.Sign("client");
  const std::string ca = write("ca.pem", authority.certificate());
  const std::vector<std::string> tls = {"--tls-ca",   ca,
                                        "--tls-cert", write("client.pem", own.certificate),
                                        "--tls-key",  write("client.key", own.key)};
  const test::Finished made = RunQuantd({"keys", "new", "team-a"});
  ASSERT_EQ(made.code, 0) << made.err;
  const size_t begin = made.err.find("qd_");
  ASSERT_NE(begin, std::string::npos);
  const std::string key = made.err.substr(begin, 46);
  EXPECT_EQ(made.out.find(key), std::string::npos) << "the file must not have the key itself";
  const std::string keys = write("keys.yaml", "keys:\n" + made.out);
  EXPECT_THAT(RunQuantd({"keys", "list", keys}).out, HasSubstr("team-a"));

  test::ServerProcess server({"tls.certificate=" + write("server.pem", server_pair.certificate),
                              "tls.key=" + write("server.key", server_pair.key),
                              "tls.client_ca=" + ca, "security.api_keys=" + keys});
  ASSERT_TRUE(server.ready()) << server.process().err();
  EXPECT_THAT(server.process().err(), HasSubstr("1 API keys read from " + keys));
  const auto run = [&](std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), {"--target", server.grpc()});
    arguments.insert(arguments.end(), more.begin(), more.end());
    return RunQuantd(arguments);
  };
  EXPECT_EQ(run({"health"}, tls).out, "SERVING\n") << "probes need no key";
  EXPECT_EQ(run({"health"}, {"--tls-ca", ca}).code, 1) << "but a certificate";
  EXPECT_EQ(run({"health"}, {}).code, 1);

  const std::vector<std::string> generate = {
      "generate", "--prompt", "Once upon a time", "--max-tokens", "4", "--temperature", "0"};
  const test::Finished refused = run(generate, tls);
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("no API key"));
  std::vector<std::string> with_key = tls;
  with_key.insert(with_key.end(), {"--api-key", key});
  const test::Finished remote = run(generate, with_key);
  EXPECT_EQ(remote.code, 0) << remote.err;
  std::vector<std::string> local = generate;
  local.insert(local.end(), {"--model", test::DemoModel(), "--profile", "nf4-dq"});
  EXPECT_EQ(remote.out, RunQuantd(local).out);
  EXPECT_THAT(server.process().err(), HasSubstr(" of team-a: OK, "));
  EXPECT_THAT(server.process().err(), testing::Not(HasSubstr(key)));
}

TEST(AccessProcess, FlagsThatNameNoFileOrNoPemAreSaid) {
  const auto error = [](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"health", "--target", "127.0.0.1:1"});
    return RunQuantd(arguments).err;
  };
  EXPECT_THAT(error({"--tls-ca", "/none"}), HasSubstr("--tls-ca /none"));
  EXPECT_THAT(error({"--tls-ca", QUANTD_SOURCE_DIR "/README.md"}), HasSubstr("is no PEM"));
  EXPECT_THAT(error({"--tls-cert", QUANTD_SOURCE_DIR "/README.md"}), HasSubstr("is no PEM"));
  const test::Finished serve = RunQuantd({"serve", "--model", test::DemoModel(), "--set",
                                          "tls.certificate=/none", "--set", "tls.key=/none"});
  EXPECT_EQ(serve.code, 1);
  EXPECT_THAT(serve.err, HasSubstr("tls.certificate /none"));
}

}  // namespace
}  // namespace quantd

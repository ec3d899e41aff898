// Conversations at the real process: what `generate --chat` and messages over TCP make the model
// continue is the template's text, with its special tokens as tokens.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "google/rpc/error_details.pb.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"

namespace quantd {
namespace {

namespace fs = std::filesystem;
using grpc::StatusCode;

constexpr const char* kTemplate =
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "    {%- if message.role not in ['system', 'user'] %}\n"
    "        {{- raise_exception('who is ' ~ message.role ~ '?') }}\n"
    "    {%- endif %}\n"
    "    {{- message.role|title + ': ' + message.content|trim + eos_token }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- 'Story: ' }}\n"
    "{%- endif %}\n";
constexpr const char* kSystem = "Tell stories.";
constexpr const char* kUser = " Of an old man and the sea ";
// What the template makes of these two; the demo model has one special token for both ends.
constexpr const char* kRendered =
    "<|endoftext|>System: Tell stories.<|endoftext|>User: Of an old man and the "
    "sea<|endoftext|>Story: ";

// The demo model with a chat template.
class ChatModel {
 public:
  explicit ChatModel(const std::string& source) {
    for (const auto& entry : fs::directory_iterator(test::DemoModel())) {
      fs::create_symlink(fs::absolute(entry.path()), dir_.path() / entry.path().filename());
    }
    std::ofstream(dir_.path() / "chat_template.jinja") << source;
  }
  std::string path() const { return dir_.path().string(); }

 private:
  testing_support::TempDir dir_;
};

v1::GenerateRequest Conversation() {
  v1::GenerateRequest request = test::Greedy(30);
  request.clear_prompt();
  for (const auto& [role, content] : {std::pair("system", kSystem), std::pair("user", kUser)}) {
    v1::ChatMessage* message = request.add_messages();
    message->set_role(role);
    message->set_content(content);
  }
  return request;
}

TEST(ChatProcess, MessagesOverTcpTheCommandAndTheRenderedTextAreOne) {
  const ChatModel model(kTemplate);
  test::ServerProcess server({"model=" + model.path()});
  ASSERT_TRUE(server.ready()) << server.process().err();
  EXPECT_EQ(server.process().err().find("messages are refused"), std::string::npos);
  test::Client client(server.grpc());
  const auto generate = [&](const v1::GenerateRequest& request, v1::GenerateResponse* response) {
    grpc::ClientContext context;
    return client.stub().Generate(&context, request, response);
  };
  v1::GenerateResponse chat, text;
  ASSERT_TRUE(generate(Conversation(), &chat).ok());
  v1::GenerateRequest rendered = test::Greedy(30, kRendered);
  rendered.set_add_special_tokens(false);  // the template has written them
  ASSERT_TRUE(generate(rendered, &text).ok());
  EXPECT_EQ(chat.text(), text.text());
  EXPECT_GT(chat.text().size(), 20u);
  // The special tokens are one token each, and there is no second begin.
  EXPECT_EQ(chat.usage().prompt_tokens(), text.usage().prompt_tokens());
  const test::Finished ids =
      test::RunQuantd({"tokenize", "--model", model.path(), "--no-special", "--text", kRendered});
  ASSERT_EQ(ids.code, 0) << ids.err;
  EXPECT_EQ(std::count(ids.out.begin(), ids.out.end(), ',') + 1, chat.usage().prompt_tokens());
  EXPECT_EQ(ids.out.rfind("[0,", 0), 0u) << ids.out;
  EXPECT_NE(ids.out.rfind("[0,0", 0), 0u) << ids.out;

  for (const std::string where : {"--model", "--target"}) {
    std::vector<std::string> arguments = {"generate", where};
    if (where == "--model") {
      arguments.insert(arguments.end(), {model.path(), "--profile", "nf4-dq"});
    } else {
      arguments.push_back(server.grpc());
    }
    arguments.insert(arguments.end(), {"--chat", "--system", kSystem, "--prompt", kUser,
                                       "--max-tokens", "30", "--temperature", "0", "--ignore-eos"});
    const test::Finished run = test::RunQuantd(arguments);
    EXPECT_EQ(run.code, 0) << run.err;
    EXPECT_EQ(run.out, chat.text() + "\n") << where;
  }

  v1::GenerateRequest refused = Conversation();
  refused.mutable_messages(1)->set_role("assistant");
  const grpc::Status status = generate(refused, &text);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(status.error_message().find("who is assistant?"), std::string::npos)
      << status.error_message();
  EXPECT_EQ(test::DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(),
            "messages");
}

TEST(ChatProcess, WithoutATemplateMessagesAreRefusedAndTheRestWorks) {
  const ChatModel broken("{% if %}");
  for (const std::string& model : {test::DemoModel(), broken.path()}) {
    test::ServerProcess server({"model=" + model});
    ASSERT_TRUE(server.ready()) << server.process().err();
    const std::string log = server.process().err();
    EXPECT_NE(log.find("requests with messages are refused: "), std::string::npos) << log;
    EXPECT_NE(log.find(model == broken.path() ? "chat_template.jinja: chat template: line 1"
                                              : "has no chat template"),
              std::string::npos)
        << log;
    test::Client client(server.grpc());
    grpc::ClientContext context, second;
    v1::GenerateResponse response;
    const grpc::Status status = client.stub().Generate(&context, Conversation(), &response);
    EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
    EXPECT_EQ(status.error_message(), "messages: the model has no chat template that can be used");
    EXPECT_TRUE(client.stub().Generate(&second, test::Greedy(3), &response).ok());
  }
}

}  // namespace
}  // namespace quantd

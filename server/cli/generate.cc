// quantd generate: text from a prompt, streamed to stdout, from a model in this process or a
// server.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/utf8.h"
#include "kernels/status.h"
#include "quantd/v1/inference.pb.h"
#include "server/cli/backend_flags.h"
#include "server/cli/channel_flags.h"
#include "server/cli/commands.h"
#include "server/grpc/client.h"
#include "server/grpc/convert.h"
#include "server/load_progress.h"
#include "server/open_model.h"
#include "server/read_input.h"

namespace quantd {
namespace {

constexpr int32_t kCliMaxTokens = 128;  // someone at a terminal wants more than the protocol's 16

struct GenerateFlags {
  std::string model;
  ChannelFlags channel;
  std::string profile;
  BackendOptions backend;
  std::string prompt;
  std::string prompt_file;
  bool chat = false;
  std::string system;
  int32_t max_tokens = kCliMaxTokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int32_t> top_k;
  std::optional<float> min_p;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;
  bool include_stop = false;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::vector<std::string> logit_bias;
  std::vector<int32_t> allowed_token_ids;
  std::vector<std::string> bad_words;
  int32_t n = 1;
  std::optional<int32_t> prompt_logprobs;
  std::optional<int32_t> prompt_lookup;
  std::optional<int32_t> logprobs;
  bool ignore_eos = false;
  bool no_special = false;
};

// A string of the protocol can hold nothing else.
absl::Status CheckUtf8(const char* what, const std::string& text) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return absl::OkStatus();
  return InvalidArgument("{} is not valid UTF-8 at byte {}", what, valid);
}

// "ID=BIAS" of --logit-bias.
absl::Status AddLogitBias(const std::string& text, v1::SamplingParams* sampling) {
  int32_t id = 0;
  float bias = 0.0f;
  const char* const end = text.data() + text.size();
  const auto [equals, bad_id] = std::from_chars(text.data(), end, id);
  if (bad_id == std::errc() && equals != end && *equals == '=') {
    const auto [last, bad_bias] = std::from_chars(equals + 1, end, bias);
    if (bad_bias == std::errc() && last == end) {
      (*sampling->mutable_logit_bias())[id] = bias;
      return absl::OkStatus();
    }
  }
  return InvalidArgument("--logit-bias is \"{}\", allowed: a token id, =, a number, as in 15=-2.5",
                         text);
}

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  std::string prompt = flags.prompt;
  if (!flags.prompt_file.empty()) {
    ASSIGN_OR_RETURN(prompt, ReadInput(flags.prompt_file, "--prompt-file " + flags.prompt_file));
  }
  RETURN_IF_ERROR(CheckUtf8("the prompt", prompt));
  RETURN_IF_ERROR(CheckUtf8("--system", flags.system));
  if (flags.chat) {
    const auto add = [&](const char* role, const std::string& content) {
      v1::ChatMessage* message = request.add_messages();
      message->set_role(role);
      message->set_content(content);
    };
    if (!flags.system.empty()) add("system", flags.system);
    add("user", prompt);
  } else {
    request.set_text(std::move(prompt));
    request.set_add_special_tokens(!flags.no_special);
  }
  v1::SamplingParams* sampling = request.mutable_sampling();
  sampling->set_max_tokens(flags.max_tokens);
  if (flags.temperature) sampling->set_temperature(*flags.temperature);
  if (flags.top_p) sampling->set_top_p(*flags.top_p);
  if (flags.top_k) sampling->set_top_k(*flags.top_k);
  if (flags.min_p) sampling->set_min_p(*flags.min_p);
  if (flags.seed) sampling->set_seed(*flags.seed);
  if (flags.logprobs) sampling->set_logprobs(*flags.logprobs);
  sampling->set_ignore_eos(flags.ignore_eos);
  for (const std::string& stop : flags.stop) {
    RETURN_IF_ERROR(CheckUtf8("--stop", stop));
    sampling->add_stop(stop);
  }
  sampling->set_include_stop_str_in_output(flags.include_stop);
  if (flags.repetition_penalty) sampling->set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling->set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling->set_frequency_penalty(*flags.frequency_penalty);
  for (const std::string& bias : flags.logit_bias) RETURN_IF_ERROR(AddLogitBias(bias, sampling));
  for (const int32_t id : flags.allowed_token_ids) sampling->add_allowed_token_ids(id);
  for (const std::string& word : flags.bad_words) {
    RETURN_IF_ERROR(CheckUtf8("--bad-word", word));
    sampling->add_bad_words(word);
  }
  sampling->set_n(flags.n);
  if (flags.prompt_logprobs) sampling->set_prompt_logprobs(*flags.prompt_logprobs);
  if (flags.prompt_lookup) sampling->set_prompt_lookup_num_tokens(*flags.prompt_lookup);
  return request;
}

// Prints what comes, whichever way it comes: one output as it grows, several at the end.
class Printer {
 public:
  explicit Printer(int32_t n) : texts_(static_cast<size_t>(std::max(n, 1))) {}

  void Print(const v1::GenerateStreamResponse& response) {
    if (texts_.size() == 1) {
      std::fwrite(response.text().data(), 1, response.text().size(), stdout);
      std::fflush(stdout);
    } else {
      texts_.at(static_cast<size_t>(response.index())) += response.text();
    }
    completion_tokens_ += response.token_ids_size();
    for (const v1::PositionLogprobs& position : response.prompt_logprobs()) {
      logprobs_.push_back(Line("prompt", position));
    }
    for (int i = 0; i < response.logprobs_size(); ++i) {
      logprobs_.push_back(Line(fmt::format("{}", response.token_ids(i)), response.logprobs(i)));
    }
  }
  // The line at the end.
  void Summarize(const std::string& model) const {
    const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
    for (size_t i = 0; texts_.size() > 1 && i < texts_.size(); ++i) {
      fmt::print("{}[{}]\n{}", i == 0 ? "" : "\n", i, texts_[i]);
    }
    std::fputc('\n', stdout);
    std::fflush(stdout);
    for (const std::string& line : logprobs_) fmt::print(stderr, "{}\n", line);
    fmt::print(stderr, "{} | {} tokens, {:.0f} tok/s\n", model, completion_tokens_,
               seconds > 0 ? completion_tokens_ / seconds : 0.0);
  }

 private:
  static std::string Line(const std::string& token, const v1::PositionLogprobs& position) {
    std::string line = fmt::format("{} {:.4f}", token, position.logprob());
    for (const v1::TokenLogprob& top : position.top()) {
      line += fmt::format(" {}:{:.4f}", top.token_id(), top.logprob());
    }
    return line;
  }

  const Clock::time_point start_ = Clock::now();  // constructed when the request is sent
  int32_t completion_tokens_ = 0;
  std::vector<std::string> texts_;  // of several outputs
  std::vector<std::string> logprobs_;
};

absl::Status GenerateRemote(const GenerateFlags& flags, const v1::GenerateRequest& request) {
  ChannelFlags channel = flags.channel;
  RETURN_IF_ERROR(ResolveChannel(&channel));
  Client client(channel.options);
  ASSIGN_OR_RETURN(const v1::GetModelInfoResponse info, client.GetModelInfo());
  Printer printer(flags.n);
  RETURN_IF_ERROR(client.GenerateStream(
      request, [&](const v1::GenerateStreamResponse& response) { printer.Print(response); }));
  printer.Summarize(DescribeModel(info.name(), info.quantization().profile(),
                                  info.quantization().bits_per_weight(), info.resident_bytes()));
  return absl::OkStatus();
}

// Hands updates from the engine thread to the one that prints.
class QueueSink : public RequestSink {
 public:
  void OnUpdate(RequestUpdate update) override {
    std::lock_guard lock(mutex_);
    if (!waiting_.empty() && waiting_.back().index == update.index) {
      Merge(std::move(update), &waiting_.back());
    } else {
      waiting_.push_back(std::move(update));
    }
    changed_.notify_one();
  }
  RequestUpdate Next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !waiting_.empty(); });
    RequestUpdate update = std::move(waiting_.front());
    waiting_.pop_front();
    return update;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RequestUpdate> waiting_;
};

absl::Status GenerateLocal(const GenerateFlags& flags, v1::GenerateRequest request) {
  OpenModelOptions options;
  options.model = flags.model;
  options.profile = flags.profile;
  options.backend = flags.backend;
  options.engine.max_num_seqs = std::clamp(flags.n, 1, 16);
  std::optional<LoadProgressReporter> progress(std::in_place, isatty(STDERR_FILENO) != 0);
  ASSIGN_OR_RETURN(OpenedModel opened, OpenModel(options, std::ref(*progress)));
  progress.reset();
  ServedModel served;
  served.name = flags.model;
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   Engine::Create(*opened.backend, std::move(opened.loaded), opened.tokenizer.get(),
                                  opened.engine));
  served.engine = engine.get();
  ASSIGN_OR_RETURN(PreparedRequest prepared,
                   ToPreparedRequest(std::move(request), FactsOf(served)));
  const bool with_logprobs = prepared.request.sampling.logprobs >= 0;
  const bool can_chat = opened.chat_template.ok();
  if (flags.chat && !can_chat) return opened.chat_template.status();
  ASSIGN_OR_RETURN(
      prepared.request.prompt_ids,
      EncodePrompt(prepared, *opened.tokenizer, can_chat ? opened.chat_template->get() : nullptr,
                   engine->max_model_len()));

  Printer printer(flags.n);
  auto sink = std::make_shared<QueueSink>();
  RETURN_IF_ERROR(engine->Submit(std::move(prepared.request), sink).status());
  for (int32_t unfinished = flags.n; unfinished > 0;) {
    RequestUpdate update = sink->Next();
    const std::optional<FinishReason> reason = update.finish_reason;
    const absl::Status status = update.status;
    printer.Print(ToStreamResponse("", std::move(update), with_logprobs));
    if (!reason.has_value()) continue;
    RETURN_IF_ERROR(status);
    --unfinished;
  }
  const QuantizationReport& report = engine->report();
  printer.Summarize(DescribeModel(flags.model, report.profile_name, report.bits_per_weight(),
                                  report.resident_bytes));
  return absl::OkStatus();
}

absl::Status RunGenerate(const GenerateFlags& flags) {
  ASSIGN_OR_RETURN(v1::GenerateRequest request, MakeRequest(flags));
  return flags.channel.options.target.empty() ? GenerateLocal(flags, std::move(request))
                                              : GenerateRemote(flags, request);
}

}  // namespace

void AddGenerate(CLI::App& app, Run* run) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* cmd = app.add_subcommand("generate", "Generate text, in this process or at a server");
  CLI::App* where = cmd->add_option_group("where")->require_option(1);
  where->add_option("--model", flags->model, "Folder of the model, to run it in this process");
  CLI::Option* target = AddChannelFlags(*cmd, flags->channel, where);
  CLI::App* prompt = cmd->add_option_group("prompt")->require_option(1);
  prompt->add_option("--prompt", flags->prompt, "The text to continue");
  prompt->add_option("--prompt-file", flags->prompt_file, "A file with the text to continue");
  CLI::Option* chat = cmd->add_flag(
      "--chat", flags->chat, "The prompt is a user's message: apply the model's chat template");
  cmd->add_option("--system", flags->system, "With --chat: the system message before it")
      ->needs(chat);
  cmd->add_option("--profile", flags->profile, "Quantization: a profile's name or a YAML file")
      ->excludes(target);
  AddBackendFlags(*cmd, flags->backend, target);
  cmd->add_option("--max-tokens", flags->max_tokens, "Tokens to generate at most")
      ->capture_default_str();
  cmd->add_option("--temperature", flags->temperature, "0 is greedy; default: the model's");
  cmd->add_option("--top-p", flags->top_p, "(0, 1]; default: the model's");
  cmd->add_option("--top-k", flags->top_k, "0 is off; default: the model's");
  cmd->add_option("--min-p", flags->min_p, "[0, 1]; default: the model's");
  cmd->add_option("--seed", flags->seed, "For the same tokens again")
      ->check(CLI::NonNegativeNumber);
  cmd->add_option("--stop", flags->stop, "A string that ends the text; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  cmd->add_flag("--include-stop", flags->include_stop, "End the text with the stop string");
  cmd->add_option("--repetition-penalty", flags->repetition_penalty,
                  "Above 0, 1 is off; default: the model's");
  cmd->add_option("--presence-penalty", flags->presence_penalty, "[-2, 2]");
  cmd->add_option("--frequency-penalty", flags->frequency_penalty, "[-2, 2]");
  cmd->add_option("--logit-bias", flags->logit_bias,
                  "ID=BIAS, BIAS in [-100, 100]; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  cmd->add_option("--allowed-token-ids", flags->allowed_token_ids,
                  "Nothing but these tokens; separated by commas")
      ->delimiter(',');
  cmd->add_option("--bad-word", flags->bad_words, "A word not to generate; may be repeated")
      ->take_all()
      ->allow_extra_args(false);
  cmd->add_option("-n", flags->n, "Outputs of the one prompt, 1 to 128")->capture_default_str();
  cmd->add_option("--logprobs", flags->logprobs,
                  "Print log probabilities, of N alternatives too, to stderr");
  cmd->add_option("--prompt-logprobs", flags->prompt_logprobs,
                  "The same of the prompt's tokens but the first");
  cmd->add_option("--prompt-lookup", flags->prompt_lookup,
                  "Tokens a step guessed from earlier text, 0 to 16; the output stays the same");
  cmd->add_flag("--ignore-eos", flags->ignore_eos, "Go on past the model's end");
  cmd->add_flag("--no-special", flags->no_special, "Do not add the tokenizer's special tokens")
      ->excludes(chat);
  cmd->callback([flags, run] { *run = [flags] { return RunGenerate(*flags); }; });
}

}  // namespace quantd

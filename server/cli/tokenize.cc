// quantd tokenize: text to token ids and back, one text or one a line.
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "kernels/status.h"
#include "server/cli/commands.h"
#include "server/cli/json_ids.h"

namespace quantd {
namespace {

struct TokenizeFlags {
  std::string model;
  std::string text;
  bool has_text = false;
  bool decode = false;
  bool jsonl = false;
  bool no_special = false;
};

// One input, text or JSON, to one output; `where` names the input in messages.
absl::StatusOr<std::string> Convert(const Tokenizer& tokenizer, const std::string& input,
                                    const std::string& where, const TokenizeFlags& flags) {
  if (flags.decode) {
    ASSIGN_OR_RETURN(const std::vector<int32_t> ids, IdsFromJson(input, where));
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= tokenizer.vocab_size()) {
        return InvalidArgument("{}: [{}]: {} is not in [0, {})", where, i, ids[i],
                               tokenizer.vocab_size());
      }
    }
    const std::string text = tokenizer.Decode(ids, flags.no_special);
    return flags.jsonl ? TextToJson(text) : text;
  }
  std::string text = input;
  if (flags.jsonl) {
    ASSIGN_OR_RETURN(text, TextFromJson(input, where));
  }
  const absl::StatusOr<std::vector<int32_t>> ids = tokenizer.Encode(text, !flags.no_special);
  if (!ids.ok()) return Annotate(ids.status(), where);
  return IdsToJson(*ids);
}

absl::Status RunTokenize(const TokenizeFlags& flags) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(flags.model));
  if (flags.jsonl) {
    int64_t number = 0;
    for (std::string line; std::getline(std::cin, line);) {
      ASSIGN_OR_RETURN(const std::string out,
                       Convert(*tokenizer, line, fmt::format("line {}", ++number), flags));
      std::cout << out << '\n';
    }
    return absl::OkStatus();
  }
  std::string input = flags.text;
  if (!flags.has_text) {
    std::ostringstream all;
    all << std::cin.rdbuf();
    input = all.str();
  }
  ASSIGN_OR_RETURN(const std::string out, Convert(*tokenizer, input, "input", flags));
  std::cout << out << '\n';
  return absl::OkStatus();
}

}  // namespace

void AddTokenize(CLI::App& app, Run* run) {
  auto flags = std::make_shared<TokenizeFlags>();
  CLI::App* cmd =
      app.add_subcommand("tokenize", "Turn text into token ids (a JSON array), or back");
  cmd->add_option("--model", flags->model, "Folder with tokenizer.json")->required();
  CLI::Option* text = cmd->add_option("--text", flags->text, "The input; default: all of stdin");
  cmd->add_flag("--decode", flags->decode, "Token ids in, text out");
  cmd->add_flag(
         "--stdin-jsonl", flags->jsonl,
         "One JSON string (or, with --decode, array of ids) a line in, one JSON value a line out")
      ->excludes(text);
  cmd->add_flag("--no-special", flags->no_special,
                "Do not add special tokens; with --decode, leave them out");
  cmd->callback([flags, text, run] {
    flags->has_text = text->count() > 0;
    *run = [flags] { return RunTokenize(*flags); };
  });
}

}  // namespace quantd

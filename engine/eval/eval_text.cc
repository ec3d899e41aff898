#include "engine/eval/eval_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/weights/fnv.h"
#include "kernels/status.h"

namespace quantd {
namespace {

// What the tokenizer puts before a text.
absl::StatusOr<std::vector<int32_t>> PrefixOf(const Tokenizer& tokenizer) {
  ASSIGN_OR_RETURN(std::vector<int32_t> with, tokenizer.Encode("a", true));
  ASSIGN_OR_RETURN(const std::vector<int32_t> bare, tokenizer.Encode("a", false));
  with.erase(std::search(with.begin(), with.end(), bare.begin(), bare.end()), with.end());
  return with;
}

int64_t BytesOf(const Tokenizer& tokenizer, int32_t id, bool first) {
  const size_t bytes =
      first ? tokenizer.FirstTokenBytes(id).size() : tokenizer.TokenBytes(id).size();
  return static_cast<int64_t>(bytes);
}

// Adds one document's tokens and the windows over them; false when max_tokens are there.
bool Cut(const Tokenizer& tokenizer, std::span<const int32_t> tokens,
         const EvalTextOptions& options, EvalText* out) {
  const int64_t document = static_cast<int64_t>(out->ids.size());
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t front = static_cast<int64_t>(out->prefix.size());
  const int64_t room = options.context - front;
  out->ids.insert(out->ids.end(), tokens.begin(), tokens.end());
  int64_t scored_to = 0;  // tokens before it are scored, or can't be
  for (int64_t begin = 0; begin < count; begin += out->stride) {
    const int64_t end = std::min(count, begin + room);
    EvalWindow window;
    window.begin = document + begin;
    window.length = front + end - begin;
    // Without a prefix, the first token of all has nothing before it.
    window.first_scored = std::max<int64_t>(1, front + std::max<int64_t>(0, scored_to - begin));
    scored_to = end;
    if (window.scored() > 0) {
      if (options.max_tokens > 0 && !out->windows.empty() &&
          out->tokens + window.scored() > options.max_tokens) {
        return false;
      }
      for (int64_t i = begin + window.first_scored - front; i < end; ++i) {
        window.bytes += BytesOf(tokenizer, tokens[static_cast<size_t>(i)], i == 0);
      }
      out->tokens += window.scored();
      out->bytes += window.bytes;
      out->windows.push_back(window);
    }
    if (end == count) break;
  }
  return true;
}

}  // namespace

std::vector<int32_t> EvalText::Ids(const EvalWindow& window) const {
  std::vector<int32_t> all = prefix;
  const auto first = ids.begin() + window.begin;
  all.insert(all.end(), first, first + window.length - static_cast<int64_t>(prefix.size()));
  return all;
}

absl::StatusOr<std::vector<std::string>> SplitDocuments(const std::string& contents,
                                                        const std::string& source) {
  if (!source.ends_with(".jsonl")) return std::vector<std::string>{contents};
  std::vector<std::string> documents;
  std::istringstream lines(contents);
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      return InvalidArgument(
          "{}: line {}: {}", source, number,
          json.is_discarded() ? "not JSON" : "not an object with a string \"text\"");
    }
    documents.push_back(json["text"].get<std::string>());
  }
  return documents;
}

absl::StatusOr<EvalText> MakeEvalText(const Tokenizer& tokenizer,
                                      const std::vector<std::string>& documents,
                                      const EvalTextOptions& options) {
  EvalText text;
  ASSIGN_OR_RETURN(text.prefix, PrefixOf(tokenizer));
  const int64_t front = static_cast<int64_t>(text.prefix.size());
  if (options.context < front + 2) {
    return InvalidArgument("context is {}, allowed: {} or more", options.context, front + 2);
  }
  const int64_t room = options.context - front;
  const int64_t stride = options.stride > 0 ? std::min(options.stride, room) : room;
  if (options.stride < 0 || options.stride > options.context) {
    return InvalidArgument("stride is {}, allowed: 1 to the context of {}", options.stride,
                           options.context);
  }
  text.stride = stride;
  bool more = true;
  for (size_t i = 0; i < documents.size() && more; ++i) {
    absl::StatusOr<std::vector<int32_t>> tokens = tokenizer.Encode(documents[i], false);
    if (!tokens.ok()) {
      return Annotate(tokens.status(), documents.size() == 1 ? std::string("the text")
                                                             : fmt::format("document {}", i + 1));
    }
    const size_t before = text.windows.size();
    more = Cut(tokenizer, *tokens, options, &text);
    if (text.windows.size() > before) ++text.documents;
  }
  Fnv64 hash;
  for (const EvalWindow& window : text.windows) {
    const std::vector<int32_t> ids = text.Ids(window);
    hash.Add(std::as_bytes(std::span(ids)));
    hash.Add(window.first_scored);
  }
  if (text.windows.empty()) {
    return InvalidArgument("the text has no token to score: at least two are needed");
  }
  text.hash = hash.Hex();
  return text;
}

}  // namespace quantd

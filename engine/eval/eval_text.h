// EvalText: what a model is measured on: documents, cut into windows of tokens.
//
// A text file is one document; a JSONL file (.jsonl) one a line, its "text". Each document is
// encoded by itself, with the special tokens its tokenizer begins a text with. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/tokenizer.h"

namespace quantd {

/// One sequence to be run (EvalText::Ids), and which of its tokens are predictions to be scored.
struct EvalWindow {
  int64_t begin = 0;         // of its text, in EvalText::ids
  int64_t length = 0;        // tokens, with what is before the text
  int64_t first_scored = 1;  // index of the first token whose prediction counts, at least 1
  int64_t bytes = 0;         // of text, of the scored tokens

  int64_t scored() const { return length - first_scored; }
};

struct EvalText {
  // Windows may share nearly all of their tokens (a small stride): these are held once.
  std::vector<int32_t> prefix;  // what every window begins with
  std::vector<int32_t> ids;     // of the documents, one after the other
  std::vector<EvalWindow> windows;
  int64_t documents = 0;  // that gave windows
  int64_t stride = 0;     // from one window to the next
  int64_t tokens = 0;     // scored
  int64_t bytes = 0;      // of these
  std::string hash;       // 16 hex digits, of the windows' tokens and of what is scored

  std::vector<int32_t> Ids(const EvalWindow& window) const;  // [window.length]
};

struct EvalTextOptions {
  int64_t context = 512;   // tokens of a window
  int64_t stride = 0;      // tokens from one window to the next; 0: context, no overlap
  int64_t max_tokens = 0;  // scored in all, in whole windows from the beginning; 0: no limit
};

/// The documents of `contents`. INVALID_ARGUMENT naming `source` and the line that is no JSON
/// object with a string "text".
absl::StatusOr<std::vector<std::string>> SplitDocuments(const std::string& contents,
                                                        const std::string& source);

/// As Hugging Face's recipe for perplexity: windows of at most `context` tokens begin every
/// `stride`, and a token is scored in the first window that has it, with all before it there as its
/// context; one that has nothing before it is not. Where the tokenizer puts tokens before a text (a
/// BOS), every window begins with them.
/// INVALID_ARGUMENT when the options contradict each other, when nothing is left to score, or when
/// a document is not UTF-8.
absl::StatusOr<EvalText> MakeEvalText(const Tokenizer& tokenizer,
                                      const std::vector<std::string>& documents,
                                      const EvalTextOptions& options);

}  // namespace quantd

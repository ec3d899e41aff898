// Tokens to text; see token_joiner.h.
#include "engine/text/token_joiner.h"

#include "engine/text/utf8.h"

namespace quantd {

TokenJoiner::TokenJoiner(const Tokenizer& tokenizer, bool continues)
    : tokenizer_(&tokenizer),
      first_(!continues),
      left_to_strip_(continues ? 0 : tokenizer.join_rules().strip_start) {}

void TokenJoiner::Push(int32_t id, std::string* text) {
  const JoinRules& rules = tokenizer_->join_rules();
  if (!rules.byte_runs) {
    pending_ += tokenizer_->TokenBytes(id);
    pending_.erase(0, AppendLossyUtf8(pending_, false, text));
    return;
  }
  if (tokenizer_->IsByteToken(id)) {
    pending_ += tokenizer_->TokenBytes(id);
  } else {
    EndByteRun(text);
    if (first_) {
      Append(tokenizer_->FirstTokenBytes(id), text);
    } else {
      Append(tokenizer_->TokenBytes(id), text);
    }
  }
  first_ = false;
}

void TokenJoiner::Finish(std::string* text) {
  if (tokenizer_->join_rules().byte_runs) {
    EndByteRun(text);
  } else {
    pending_.erase(0, AppendLossyUtf8(pending_, true, text));
  }
}

// A run of byte tokens that is not UTF-8 as a whole is one U+FFFD a byte: the ByteFallback decoder
// of Hugging Face's tokenizers.
void TokenJoiner::EndByteRun(std::string* text) {
  if (pending_.empty()) return;
  if (ValidUtf8Prefix(pending_) == pending_.size()) {
    Append(pending_, text);
  } else {
    for (size_t i = 0; i < pending_.size(); ++i) Append("\uFFFD", text);
  }
  pending_.clear();
}

void TokenJoiner::Append(std::string_view part, std::string* text) {
  const std::string& strip = tokenizer_->join_rules().strip;
  while (left_to_strip_ > 0 && part.starts_with(strip)) {
    part.remove_prefix(strip.size());
    --left_to_strip_;
  }
  if (!part.empty()) left_to_strip_ = 0;
  *text += part;
}

}  // namespace quantd

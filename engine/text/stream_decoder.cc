// Text from tokens as they come; see stream_decoder.h.
#include "engine/text/stream_decoder.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace quantd {
namespace {

// Length of the longest end of `text` that is a beginning of `stop`, but not all of it.
size_t PossibleBeginning(std::string_view text, std::string_view stop) {
  for (size_t size = std::min(text.size(), stop.size() - 1); size > 0; --size) {
    if (text.ends_with(stop.substr(0, size))) return size;
  }
  return 0;
}

}  // namespace

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, std::vector<std::string> stop_strings,
                             bool skip_special_tokens, bool continues, bool include_stop)
    : tokenizer_(tokenizer),
      skip_special_tokens_(skip_special_tokens),
      include_stop_(include_stop),
      joiner_(tokenizer, continues) {
  SetStopStrings(std::move(stop_strings));
}

void StreamDecoder::SetStopStrings(std::vector<std::string> stop_strings) {
  stop_strings_ = std::move(stop_strings);
  for (const std::string& stop : stop_strings_) QUANTD_CHECK(!stop.empty(), "an empty stop string");
}

bool StreamDecoder::Push(int32_t id, std::string* delta) {
  if (!matched_stop_.empty()) return true;
  if (!skip_special_tokens_ || !tokenizer_.IsSpecial(id)) joiner_.Push(id, &held_);
  return Emit(false, delta);
}

void StreamDecoder::Finish(std::string* delta) {
  if (!matched_stop_.empty()) return;
  joiner_.Finish(&held_);
  Emit(true, delta);
}

bool StreamDecoder::Emit(bool last, std::string* delta) {
  size_t end = std::string::npos, begin = 0;
  size_t possible = 0;
  for (const std::string& stop : stop_strings_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) {
      possible = std::max(possible, PossibleBeginning(held_, stop));
    } else if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
      begin = at;
      end = at + stop.size();
      matched_stop_ = stop;
    }
  }
  if (!matched_stop_.empty()) {
    delta->append(held_, 0, include_stop_ ? end : begin);
    held_.clear();
    return true;
  }
  const size_t certain = last ? held_.size() : held_.size() - possible;
  delta->append(held_, 0, certain);
  held_.erase(0, certain);
  return false;
}

}  // namespace quantd

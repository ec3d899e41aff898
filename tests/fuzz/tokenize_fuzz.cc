// Texts and ids through the tokenizers of the fixtures: the first byte chooses one.
#include <algorithm>

#include "engine/text/stream_decoder.h"
#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

std::vector<std::unique_ptr<Tokenizer>> LoadAll() {
  std::vector<std::unique_ptr<Tokenizer>> all;
  for (const char* folder : {QUANTD_TEST_DATA "/tokenizers", QUANTD_TEST_DATA "/sentencepiece"}) {
    for (const auto& dir : std::filesystem::directory_iterator(folder)) {
      auto tokenizer = Tokenizer::Load(dir.path());
      if (tokenizer.ok()) all.push_back(*std::move(tokenizer));
    }
  }
  QUANTD_CHECK(!all.empty());
  return all;
}

// The deltas of a stream are the text.
void CheckStream(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  StreamDecoder stream(tokenizer, {}, true);
  std::string text;
  for (const int32_t id : ids) stream.Push(id, &text);
  stream.Finish(&text);
  QUANTD_CHECK(text == tokenizer.Decode(ids, true), "the stream says \"{}\"", text);
}

FUZZ_TARGET(tokenize) {
  static const auto tokenizers = LoadAll();
  fuzz::Reader reader(bytes);
  const Tokenizer& tokenizer = *tokenizers[reader.Byte() % tokenizers.size()];
  const bool as_ids = reader.Byte() % 2 == 1;
  if (as_ids) {
    std::vector<int32_t> ids;
    while (!reader.Rest().empty()) {
      const int32_t id = reader.Byte() << 8;
      ids.push_back((id | reader.Byte()) % tokenizer.vocab_size());
    }
    return CheckStream(tokenizer, ids);
  }
  const std::string text = fuzz::Text(reader.Rest());
  const auto ids = tokenizer.Encode(text, false);
  if (!ids.ok()) return;
  const auto count = static_cast<int64_t>(ids->size());
  const int64_t least = tokenizer.MinTokens(text);
  QUANTD_CHECK(least <= count, "{} tokens, at least {}", count, least);
  for (const int32_t id : *ids) QUANTD_CHECK(id >= 0 && id < tokenizer.vocab_size(), "{}", id);
  CheckStream(tokenizer, *ids);
}

}  // namespace
}  // namespace quantd

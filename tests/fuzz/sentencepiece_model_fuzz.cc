// A tokenizer.model; one that loads has to encode, and to decode any id.
#include <algorithm>

#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET("sentencepiece_model") {
  static const fuzz::Folder folder;
  folder.Write("tokenizer.model", fuzz::Text(bytes));
  const auto tokenizer = Tokenizer::Load(folder.path());
  if (!tokenizer.ok()) return;
  for (const char* text : {"", " ", "the river,  opens!\n 123 \xc3\xa9\xf0\x9f\x98\x80</s>"}) {
    const auto ids = (*tokenizer)->Encode(text, true);
    if (ids.ok()) (void)(*tokenizer)->Decode(*ids, false);
  }
  std::vector<int32_t> ids = {-1, INT32_MAX};
  for (int32_t id = 0; id <= std::min((*tokenizer)->vocab_size(), 300); ++id) ids.push_back(id);
  (void)(*tokenizer)->Decode(ids, true);
}

}  // namespace
}  // namespace quantd

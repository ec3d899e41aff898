// What the fuzz targets of tokenizers do: a file of a model folder that loads has to encode, and to
// decode any id. Header-only.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "engine/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd::fuzz {

/// Loads a tokenizer of a folder whose only file is `name` with `bytes`; encodes `text` among
/// others.
inline void LoadAndUseTokenizer(const std::string& name, Bytes bytes, const char* text) {
  static const Folder folder;
  folder.Write(name, Text(bytes));
  const auto tokenizer = Tokenizer::Load(folder.path());
  if (!tokenizer.ok()) return;
  for (const char* each : {"", " ", text}) {
    const auto ids = (*tokenizer)->Encode(each, false);
    if (!ids.ok()) continue;
    QUANTD_CHECK((*tokenizer)->MinTokens(each) <= static_cast<int64_t>(ids->size()));
    const auto with_special = (*tokenizer)->Encode(each, true);
    if (with_special.ok()) (void)(*tokenizer)->Decode(*with_special, false);
  }
  std::vector<int32_t> ids = {-1, INT32_MAX};
  for (int32_t id = 0; id <= std::min((*tokenizer)->vocab_size(), 300); ++id) ids.push_back(id);
  (void)(*tokenizer)->Decode(ids, true);
}

}  // namespace quantd::fuzz

// A tokenizer.model; one that loads has to encode, and to decode any id.
#include "tests/fuzz/tokenizer_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(sentencepiece_model) {
  fuzz::LoadAndUseTokenizer("tokenizer.model", bytes,
                            "the river,  opens!\n 123 \xc3\xa9\xf0\x9f\x98\x80</s>");
}

}  // namespace
}  // namespace quantd

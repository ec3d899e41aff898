// A tokenizer.json; one that loads has to encode, and to decode any id.
#include "tests/fuzz/tokenizer_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(tokenizer_json) {
  fuzz::LoadAndUseTokenizer("tokenizer.json", bytes,
                            "Hello,  world!\n 123 \xc3\xa9\xf0\x9f\x98\x80</s>");
}

}  // namespace
}  // namespace quantd

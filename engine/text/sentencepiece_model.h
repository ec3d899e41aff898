// Reads tokenizer.model, SentencePiece's own format: a protocol buffer with the pieces and how they
// are to be used.
//
// Read here and not by SentencePiece's library, because Debian's exports the symbols of the
// protobuf 3.14 that it was built with: in one process with gRPC's 3.21 it aborts or crashes,
// whichever comes first. What the BPE models in use say is what tokenizer.json says in other words;
// the rest is refused by name. Stateless.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "engine/text/tokenizer_spec.h"

namespace quantd {

/// Fills `*spec` with what the file's `bytes` say: pieces and merges, normalizer, decoder, control
/// symbols (as special added tokens), and its bos_token and eos_token. DATA_LOSS for what is
/// malformed, UNIMPLEMENTED naming what is not supported (a unigram model, say). Source of the
/// format: sentencepiece_model.proto.
absl::Status ParseSentencePieceModel(std::string_view bytes, TokenizerSpec* spec);

}  // namespace quantd

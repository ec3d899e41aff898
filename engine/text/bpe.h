// Bpe: the merges of byte-pair encoding, on one piece of text. Immutable, safe from any thread;
// each caller brings its own scratch memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/tokenizer_spec.h"
#include "engine/text/vocabulary.h"
#include "kernels/fault_list.h"

namespace quantd {

class Bpe {
 public:
  struct Scratch {
    struct Symbol {
      int32_t id;
      int32_t previous;  // index of the symbol before, or -1
      int32_t next;      // index of the symbol after, or -1
    };
    std::vector<Symbol> symbols;
    std::vector<uint64_t> queue;  // heap of rank << 32 | index of the left symbol
  };

  /// Resolves the merges of `spec`; those of unknown tokens are added to `faults`.
  static Bpe Create(const TokenizerSpec& spec, const Vocabulary& vocabulary, FaultList* faults);

  /// Appends the token ids of `piece`: from single bytes (byte-level) or characters, the merge of
  /// lowest rank first, the leftmost among equals, until none applies. Time n log n. A character
  /// that the vocabulary lacks becomes the tokens of its bytes, or the unknown token; without
  /// either it is left out, as Hugging Face's tokenizers does. `piece` is valid UTF-8 of fewer than
  /// 2^31 bytes.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  /// Number of the bytes that occur in UTF-8 and that the vocabulary lacks, not byte-level as
  /// tokens of byte fallback (all of them where that is off).
  int MissingBytes() const;

 private:
  struct Merge {
    uint64_t pair;  // left id << 32 | right id
    uint32_t rank;
    int32_t id;  // of the merged token
  };
  static uint64_t Pair(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  // The symbols that `piece` is merged from.
  void Symbols(std::string_view piece, std::vector<Scratch::Symbol>* symbols) const;
  int32_t CharacterId(char32_t code_point) const;
  size_t Slot(uint64_t pair) const;  // where in table_ the pair is, or would be
  const Merge* Find(int32_t left, int32_t right) const;

  bool byte_level_ = true;
  // -1 where the vocabulary lacks the byte; of byte fallback where that is on and not byte-level.
  std::array<int32_t, 256> byte_ids_{};
  std::array<int32_t, 128> ascii_ids_{};                 // of characters, -1 where it lacks one
  std::unordered_map<char32_t, int32_t> character_ids_;  // of the other characters
  int32_t unk_id_ = -1;
  bool fuse_unk_ = false;
  // Open addressing with linear probing, at most half full: a lookup is about one cache miss, and
  // the lookups are most of the work.
  std::vector<Merge> table_;
  int shift_ = 0;  // 64 - log2(table_.size())
};

}  // namespace quantd

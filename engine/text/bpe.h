// Bpe: the merges of byte-pair encoding, on one piece of text. Immutable, safe from any thread;
// each caller brings its own scratch memory.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
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
  static Bpe Create(const BpeSpec& spec, const Vocabulary& vocabulary, FaultList* faults);

  /// Appends the token ids of `piece`: from single bytes, the merge of lowest rank first, the
  /// leftmost among equals, until none applies. Time n log n. A byte that the vocabulary lacks is
  /// left out, as Hugging Face's tokenizers does. `piece` has fewer than 2^31 bytes.
  void Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const;

  /// Number of the bytes that occur in UTF-8 and that the vocabulary lacks.
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
  size_t Slot(uint64_t pair) const;  // where in table_ the pair is, or would be
  const Merge* Find(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_{};  // -1 where the vocabulary lacks the byte
  // Open addressing with linear probing, at most half full: a lookup is about one cache miss, and
  // the lookups are most of the work.
  std::vector<Merge> table_;
  int shift_ = 0;  // 64 - log2(table_.size())
};

}  // namespace quantd

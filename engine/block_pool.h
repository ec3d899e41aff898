// BlockPool: who may write where in the paged KV cache. Block ids only, no bytes (those are
// KvCache's).
//
// Blocks are reference counted; full blocks of confirmed tokens can be found again by later
// sequences with the same prefix (prefix caching), and stay findable after their last user is gone
// until the least recently used of them is needed for something else. Block 0 is reserved for
// padding writes.
//
// The cache is keyed by a chained 64-bit hash (parent's hash, token ids of the block), but a hit
// also compares the token ids and the identity of the parent block's registration. Identities are
// never reused, so by induction a hit means that every token from position 0 on is equal: no
// collision, made on purpose or not, can hand out another user's KV.
//
// Pure logic; used by the engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace quantd {

/// The blocks of one sequence, in order, and how far they are registered in the prefix cache.
struct BlockTable {
  std::vector<int32_t> blocks;
  int32_t num_registered = 0;   // leading blocks whose content the prefix cache knows
  uint64_t chain_hash = 0;      // of the last registered block
  uint64_t chain_identity = 0;  // of the registration of the last registered block
};

class BlockPool {
 public:
  /// `num_blocks` includes the reserved block 0. `salt` goes into every hash: whatever makes KV of
  /// equal tokens differ (KV dtype, profile).
  BlockPool(int32_t num_blocks, int32_t block_size, uint64_t salt);

  int32_t block_size() const { return block_size_; }
  /// Blocks that sequences may hold: all but the reserved one.
  int32_t num_usable() const { return num_blocks_ - 1; }
  /// Blocks nobody references: free, or only held by the prefix cache.
  int32_t num_free() const { return static_cast<int32_t>(free_.size()) + num_idle_; }
  /// Registered blocks, referenced or not.
  int32_t num_cached() const { return static_cast<int32_t>(by_hash_.size()); }
  int32_t ref_count(int32_t block) const { return info_[static_cast<size_t>(block)].refs; }
  /// Blocks that `num_tokens` tokens take.
  int32_t BlocksFor(int64_t num_tokens) const {
    return static_cast<int32_t>((num_tokens + block_size_ - 1) / block_size_);
  }

  struct PrefixMatch {
    int32_t blocks = 0;  // full blocks found
    int32_t idle = 0;    // of these, how many nobody references now (taking them takes free blocks)
  };
  /// The longest cached prefix of `tokens`, in full blocks, always short of the last token: at
  /// least one token must be computed to get logits. Changes nothing.
  PrefixMatch Peek(std::span<const int32_t> tokens) const;
  /// Puts that prefix into the empty `table`, referenced. Returns the tokens covered.
  int32_t TakePrefix(std::span<const int32_t> tokens, BlockTable* table);

  /// Adds blocks until `table` covers `num_tokens`. False, and nothing changed, when too few are
  /// free.
  bool Grow(BlockTable* table, int64_t num_tokens);
  /// Registers the full blocks of the first `num_confirmed` tokens (their KV is written) in the
  /// prefix cache. `tokens` are the sequence's from position 0.
  void Register(std::span<const int32_t> tokens, int64_t num_confirmed, BlockTable* table);
  /// Gives back the blocks behind the first `num_tokens` tokens. Registered blocks must stay whole.
  void Truncate(BlockTable* table, int64_t num_tokens);
  /// Gives back all blocks. With `keep_cached` false the registered ones are also forgotten (their
  /// content is not to be trusted).
  void Release(BlockTable* table, bool keep_cached = true);

 private:
  struct BlockInfo {
    int32_t refs = 0;
    int32_t previous = 0;  // neighbours in the list of idle blocks, while in it
    int32_t next = 0;
    uint64_t hash = 0;             // key in by_hash_, while registered
    uint64_t identity = 0;         // of this registration; 0: not registered
    uint64_t parent_identity = 0;  // of the registration of the block before
  };
  BlockInfo& info(int32_t block) { return info_[static_cast<size_t>(block)]; }
  std::span<int32_t> TokensOf(int32_t block) {
    return {tokens_.data() + static_cast<size_t>(block) * static_cast<size_t>(block_size_),
            static_cast<size_t>(block_size_)};
  }
  // The registered block for (parent, tokens of one block), or 0.
  int32_t Find(uint64_t hash, uint64_t parent_identity, std::span<const int32_t> tokens) const;
  void Reference(int32_t block);
  void Unreference(int32_t block);
  int32_t TakeFree();
  void Forget(int32_t block);  // its registration, if any
  void LinkNewest(int32_t block);
  void Unlink(int32_t block);

  const int32_t num_blocks_;
  const int32_t block_size_;
  const uint64_t salt_;
  uint64_t last_identity_ = 0;
  int32_t num_idle_ = 0;         // unreferenced registered blocks: the LRU list, headed by block 0
  std::vector<BlockInfo> info_;  // [num_blocks]
  std::vector<int32_t> tokens_;  // [num_blocks, block_size] of registered blocks
  std::vector<int32_t> free_;    // unreferenced and unregistered
  absl::flat_hash_map<uint64_t, int32_t> by_hash_;
};

}  // namespace quantd

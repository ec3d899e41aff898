// BlockPool: reference counts, the prefix cache and its LRU list. See block_pool.h.
#include "engine/block_pool.h"

#include <algorithm>

#include "kernels/check.h"

namespace quantd {
namespace {

// Chained hash of one block. Quality only decides how often unequal blocks meet (hits are
// verified).
uint64_t HashBlock(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t h = parent;
  for (const int32_t token : tokens) {
    h = (h ^ static_cast<uint32_t>(token)) * 0x9E3779B97F4A7C15ull;  // 2^64 / golden ratio
    h ^= h >> 29;
  }
  return h;
}

}  // namespace

BlockPool::BlockPool(int32_t num_blocks, int32_t block_size, uint64_t salt)
    : num_blocks_(num_blocks), block_size_(block_size), salt_(salt) {
  QUANTD_CHECK(num_blocks >= 2 && block_size >= 1, "{} blocks of {}", num_blocks, block_size);
  info_.resize(static_cast<size_t>(num_blocks));
  tokens_.resize(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size));
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int32_t b = num_blocks - 1; b >= 1; --b) free_.push_back(b);  // block 1 is taken first
  by_hash_.reserve(static_cast<size_t>(num_blocks));
}

int32_t BlockPool::Find(uint64_t hash, uint64_t parent_identity,
                        std::span<const int32_t> tokens) const {
  const auto it = by_hash_.find(hash);
  if (it == by_hash_.end()) return 0;
  const int32_t block = it->second;
  if (info_[static_cast<size_t>(block)].parent_identity != parent_identity) return 0;
  const int32_t* known =
      tokens_.data() + static_cast<size_t>(block) * static_cast<size_t>(block_size_);
  return std::equal(tokens.begin(), tokens.end(), known) ? block : 0;
}

BlockPool::PrefixMatch BlockPool::Peek(std::span<const int32_t> tokens) const {
  PrefixMatch match;
  if (tokens.empty()) return match;
  const auto size = static_cast<size_t>(block_size_);
  const size_t limit = (tokens.size() - 1) / size;
  uint64_t hash = salt_;
  uint64_t identity = 0;
  for (size_t i = 0; i < limit; ++i) {
    const auto block_tokens = tokens.subspan(i * size, size);
    hash = HashBlock(hash, block_tokens);
    const int32_t block = Find(hash, identity, block_tokens);
    if (block == 0) break;
    const BlockInfo& found = info_[static_cast<size_t>(block)];
    identity = found.identity;
    ++match.blocks;
    if (found.refs == 0) ++match.idle;
  }
  return match;
}

int32_t BlockPool::TakePrefix(std::span<const int32_t> tokens, BlockTable* table) {
  QUANTD_CHECK(table->blocks.empty() && table->num_registered == 0);
  table->chain_hash = salt_;
  table->chain_identity = 0;
  if (tokens.empty()) return 0;
  const auto size = static_cast<size_t>(block_size_);
  const size_t limit = (tokens.size() - 1) / size;
  for (size_t i = 0; i < limit; ++i) {
    const auto block_tokens = tokens.subspan(i * size, size);
    const uint64_t hash = HashBlock(table->chain_hash, block_tokens);
    const int32_t block = Find(hash, table->chain_identity, block_tokens);
    if (block == 0) break;
    Reference(block);
    table->blocks.push_back(block);
    ++table->num_registered;
    table->chain_hash = hash;
    table->chain_identity = info(block).identity;
  }
  return table->num_registered * block_size_;
}

bool BlockPool::Grow(BlockTable* table, int64_t num_tokens) {
  const int32_t missing = BlocksFor(num_tokens) - static_cast<int32_t>(table->blocks.size());
  if (missing > num_free()) return false;
  for (int32_t i = 0; i < missing; ++i) table->blocks.push_back(TakeFree());
  return true;
}

void BlockPool::Register(std::span<const int32_t> tokens, int64_t num_confirmed,
                         BlockTable* table) {
  if (table->num_registered == 0) {
    table->chain_hash = salt_;
    table->chain_identity = 0;
  }
  const auto size = static_cast<size_t>(block_size_);
  const auto full = static_cast<int32_t>(num_confirmed / block_size_);
  QUANTD_CHECK(static_cast<size_t>(num_confirmed) <= tokens.size());
  for (int32_t i = table->num_registered; i < full; ++i) {
    const auto block_tokens = tokens.subspan(static_cast<size_t>(i) * size, size);
    const uint64_t hash = HashBlock(table->chain_hash, block_tokens);
    const int32_t known = Find(hash, table->chain_identity, block_tokens);
    const int32_t block = table->blocks[static_cast<size_t>(i)];
    if (known == 0) {
      // An unequal block under this hash is a collision, or the child of a parent that was evicted
      // and registered anew: it can no longer be reached, so the newcomer takes its place.
      if (const auto it = by_hash_.find(hash); it != by_hash_.end()) {
        const int32_t stale = it->second;
        Forget(stale);
        if (info(stale).refs == 0) {
          Unlink(stale);
          free_.push_back(stale);
        }
      }
      std::copy(block_tokens.begin(), block_tokens.end(), TokensOf(block).begin());
      BlockInfo& mine = info(block);
      mine.hash = hash;
      mine.identity = ++last_identity_;
      mine.parent_identity = table->chain_identity;
      by_hash_[hash] = block;
    }
    // Of two equal blocks computed side by side the first stays findable; the chain goes on from
    // it.
    table->chain_hash = hash;
    table->chain_identity = info(known == 0 ? block : known).identity;
    ++table->num_registered;
  }
}

void BlockPool::Truncate(BlockTable* table, int64_t num_tokens) {
  QUANTD_CHECK(num_tokens >= static_cast<int64_t>(table->num_registered) * block_size_,
               "{} tokens, {} registered blocks", num_tokens, table->num_registered);
  const auto keep = static_cast<size_t>(BlocksFor(num_tokens));
  while (table->blocks.size() > keep) {
    Unreference(table->blocks.back());
    table->blocks.pop_back();
  }
}

void BlockPool::Release(BlockTable* table, bool keep_cached) {
  // Last block first, so that of one sequence the end is evicted before the beginning others may
  // share.
  for (size_t i = table->blocks.size(); i-- > 0;) {
    if (!keep_cached) Forget(table->blocks[i]);
    Unreference(table->blocks[i]);
  }
  table->blocks.clear();
  table->num_registered = 0;
  table->chain_hash = 0;
  table->chain_identity = 0;
}

void BlockPool::Reference(int32_t block) {
  BlockInfo& b = info(block);
  if (b.refs++ == 0) Unlink(block);
}

void BlockPool::Unreference(int32_t block) {
  BlockInfo& b = info(block);
  QUANTD_CHECK(b.refs > 0, "block {} released twice", block);
  if (--b.refs > 0) return;
  if (b.identity != 0) {
    LinkNewest(block);
  } else {
    free_.push_back(block);
  }
}

int32_t BlockPool::TakeFree() {
  int32_t block = 0;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    block = info(0).next;  // the least recently used idle block
    QUANTD_CHECK(block != 0, "no free block");
    Unlink(block);
    Forget(block);
  }
  info(block).refs = 1;
  return block;
}

void BlockPool::Forget(int32_t block) {
  BlockInfo& b = info(block);
  if (b.identity == 0) return;
  by_hash_.erase(b.hash);
  b.identity = 0;
  b.parent_identity = 0;
}

void BlockPool::LinkNewest(int32_t block) {
  const int32_t newest = info(0).previous;
  info(block).previous = newest;
  info(block).next = 0;
  info(newest).next = block;
  info(0).previous = block;
  ++num_idle_;
}

void BlockPool::Unlink(int32_t block) {
  BlockInfo& b = info(block);
  info(b.previous).next = b.next;
  info(b.next).previous = b.previous;
  b.previous = b.next = 0;
  --num_idle_;
}

}  // namespace quantd

// Byte-pair merges with a priority queue over a linked list of symbols; see bpe.h.
#include "engine/text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <utility>

#include "engine/text/token_text.h"
#include "engine/text/utf8.h"

namespace quantd {
namespace {

constexpr uint64_t kNoPair = ~uint64_t{0};
constexpr int32_t kMerged = -1;  // id of a symbol that has become part of the one before

}  // namespace

size_t Bpe::Slot(uint64_t pair) const {
  const size_t mask = table_.size() - 1;
  // Fibonacci hashing: the upper bits of the product mix both ids.
  size_t at = (pair * 0x9E3779B97F4A7C15u) >> shift_;
  while (table_[at].pair != pair && table_[at].pair != kNoPair) at = (at + 1) & mask;
  return at;
}

const Bpe::Merge* Bpe::Find(int32_t left, int32_t right) const {
  const Merge& merge = table_[Slot(Pair(left, right))];
  return merge.pair == kNoPair ? nullptr : &merge;
}

Bpe Bpe::Create(const TokenizerSpec& tokenizer, const Vocabulary& vocabulary, FaultList* faults) {
  const BpeSpec& spec = tokenizer.bpe;
  Bpe bpe;
  bpe.byte_level_ = tokenizer.byte_level;
  bpe.byte_ids_.fill(-1);
  bpe.ascii_ids_.fill(-1);
  for (int byte = 0; byte < 256; ++byte) {
    const char c = static_cast<char>(byte);
    if (bpe.byte_level_) {
      bpe.byte_ids_[byte] = vocabulary.FindPiece(std::string_view(&c, 1)).value_or(-1);
    } else if (spec.byte_fallback) {
      bpe.byte_ids_[byte] =
          vocabulary.FindPiece(TokenOfByte(static_cast<uint8_t>(byte))).value_or(-1);
    }
  }
  if (!bpe.byte_level_) {
    for (const auto& [token, id] : spec.vocab) {
      if (token.empty()) continue;
      const Utf8Unit unit = NextUtf8(token);
      if (unit.kind != Utf8Unit::Kind::kValid || unit.size != token.size()) continue;
      if (unit.code_point < bpe.ascii_ids_.size()) {
        bpe.ascii_ids_[unit.code_point] = id;
      } else {
        bpe.character_ids_.emplace(unit.code_point, id);
      }
    }
    bpe.fuse_unk_ = spec.fuse_unk;
    if (spec.unk_token) {
      bpe.unk_id_ = vocabulary.FindModelToken(*spec.unk_token).value_or(-1);
      if (bpe.unk_id_ < 0)
        faults->Add("model.unk_token: {:?} is not in model.vocab", *spec.unk_token);
    }
  }
  const size_t slots = std::bit_ceil(2 * spec.merges.size() + 2);
  bpe.table_.assign(slots, Merge{kNoPair, 0, 0});
  bpe.shift_ = 64 - std::countr_zero(slots);
  for (size_t rank = 0; rank < spec.merges.size(); ++rank) {
    const auto& [left, right] = spec.merges[rank];
    const std::optional<int32_t> left_id = vocabulary.FindModelToken(left);
    const std::optional<int32_t> right_id = vocabulary.FindModelToken(right);
    const std::optional<int32_t> id = vocabulary.FindModelToken(left + right);
    if (!left_id || !right_id || !id) {
      faults->Add("model.merges[{}]: {:?} is not in model.vocab", rank,
                  !left_id    ? left
                  : !right_id ? right
                              : left + right);
      continue;
    }
    const uint64_t pair = Pair(*left_id, *right_id);
    const uint32_t order = spec.ranks.empty() ? static_cast<uint32_t>(rank) : spec.ranks[rank];
    bpe.table_[bpe.Slot(pair)] = Merge{pair, order, *id};
  }
  return bpe;
}

int Bpe::MissingBytes() const {
  int missing = 0;
  for (int byte = 0; byte <= 0xF4; ++byte) {
    const bool occurs = byte != 0xC0 && byte != 0xC1;
    missing += occurs && byte_ids_[byte] < 0;
  }
  return missing;
}

int32_t Bpe::CharacterId(char32_t code_point) const {
  if (code_point < ascii_ids_.size()) return ascii_ids_[code_point];
  const auto found = character_ids_.find(code_point);
  return found == character_ids_.end() ? -1 : found->second;
}

void Bpe::Symbols(std::string_view piece, std::vector<Scratch::Symbol>* symbols) const {
  const auto add = [&](int32_t id) {
    const int32_t at = static_cast<int32_t>(symbols->size());
    if (at > 0) symbols->back().next = at;
    symbols->push_back({id, at - 1, -1});
  };
  if (byte_level_) {
    for (const char c : piece) {
      if (const int32_t id = byte_ids_[static_cast<uint8_t>(c)]; id >= 0) add(id);
    }
    return;
  }
  bool unknown = false;  // an unknown token is to be added, before the next known character
  for (size_t at = 0; at < piece.size();) {
    const Utf8Unit unit = NextUtf8(piece.substr(at));
    const std::string_view bytes = piece.substr(at, unit.size);
    at += unit.size;
    if (const int32_t id = CharacterId(unit.code_point); id >= 0) {
      if (std::exchange(unknown, false)) add(unk_id_);
      add(id);
      continue;
    }
    const auto has_token = [&](char c) { return byte_ids_[static_cast<uint8_t>(c)] >= 0; };
    if (std::all_of(bytes.begin(), bytes.end(), has_token)) {
      for (const char c : bytes) add(byte_ids_[static_cast<uint8_t>(c)]);
      continue;
    }
    if (unk_id_ < 0) continue;
    if (unknown && !fuse_unk_) add(unk_id_);
    unknown = true;
  }
  if (unknown) add(unk_id_);
}

void Bpe::Encode(std::string_view piece, Scratch* scratch, std::vector<int32_t>* ids) const {
  auto& symbols = scratch->symbols;
  auto& queue = scratch->queue;
  symbols.clear();
  queue.clear();
  Symbols(piece, &symbols);

  const auto entry = [](const Merge& merge, int32_t at) {
    return static_cast<uint64_t>(merge.rank) << 32 | static_cast<uint32_t>(at);
  };
  const auto push = [&](int32_t left, int32_t right) {
    const Merge* merge = Find(symbols[left].id, symbols[right].id);
    if (merge == nullptr) return;
    queue.push_back(entry(*merge, left));
    std::push_heap(queue.begin(), queue.end(), std::greater<>());
  };
  for (size_t i = 1; i < symbols.size(); ++i) {
    const Merge* merge = Find(symbols[i - 1].id, symbols[i].id);
    if (merge != nullptr) queue.push_back(entry(*merge, static_cast<int32_t>(i - 1)));
  }
  std::make_heap(queue.begin(), queue.end(), std::greater<>());

  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end(), std::greater<>());
    const uint64_t top = queue.back();
    queue.pop_back();
    const int32_t at = static_cast<int32_t>(top & 0xFFFFFFFF);
    Scratch::Symbol& left = symbols[at];
    if (left.id == kMerged || left.next < 0) continue;
    // An entry whose symbols have changed since is stale: their pair has another rank now, or none.
    const Merge* merge = Find(left.id, symbols[left.next].id);
    if (merge == nullptr || merge->rank != top >> 32) continue;

    Scratch::Symbol& right = symbols[left.next];
    left.id = merge->id;
    left.next = right.next;
    right.id = kMerged;
    if (left.next >= 0) symbols[left.next].previous = at;
    if (left.previous >= 0) push(left.previous, at);
    if (left.next >= 0) push(at, left.next);
  }
  for (int32_t at = symbols.empty() ? -1 : 0; at >= 0; at = symbols[at].next) {
    ids->push_back(symbols[at].id);
  }
}

}  // namespace quantd

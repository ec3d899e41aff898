// Vocabulary; see vocabulary.h.
#include "engine/text/vocabulary.h"

#include <utility>

#include "engine/text/byte_level.h"
#include "engine/text/token_text.h"

namespace quantd {

std::optional<int32_t> Vocabulary::Get(const Map& map, std::string_view key) {
  const auto found = map.find(key);
  if (found == map.end()) return std::nullopt;
  return found->second;
}

void Vocabulary::Reserve(int32_t id) {
  if (InRange(id)) return;
  bytes_.resize(id + 1);
  exists_.resize(id + 1);
  special_.resize(id + 1);
  is_byte_.resize(id + 1);
  if (!byte_level_) spellings_.resize(id + 1);
}

void Vocabulary::Respell(const TextDecoderSpec& decoder, int32_t id, std::string_view spelling) {
  const std::optional<char> byte =
      decoder.byte_fallback ? ByteOfToken(spelling) : std::optional<char>();
  is_byte_[id] = byte.has_value();
  bytes_[id] = byte ? std::string(1, *byte) : EditToken(decoder, spelling, false);
  spellings_[id] = spelling;
}

std::string_view Vocabulary::Spelling(int32_t id) const {
  if (!InRange(id)) return {};
  return byte_level_ ? bytes_[id] : spellings_[id];
}

Vocabulary Vocabulary::Create(const TokenizerSpec& spec, FaultList* faults) {
  Vocabulary vocabulary;
  vocabulary.byte_level_ = spec.byte_level;
  vocabulary.pieces_.reserve(spec.bpe.vocab.size());
  std::string bytes;
  for (const auto& [spelling, id] : spec.bpe.vocab) {
    vocabulary.Reserve(id);
    if (vocabulary.exists_[id]) {
      faults->Add("model.vocab: id {} belongs to more than one token, {:?} among them", id,
                  spelling);
      continue;
    }
    vocabulary.exists_[id] = 1;
    if (!spec.byte_level) {
      vocabulary.Respell(spec.decoder, id, spelling);
      vocabulary.pieces_.emplace(spelling, id);
      continue;
    }
    const bool byte_level = FromByteLevel(spelling, &bytes);
    vocabulary.bytes_[id] = byte_level ? bytes : spelling;
    (byte_level ? vocabulary.pieces_ : vocabulary.other_spelling_)
        .emplace(vocabulary.bytes_[id], id);
  }
  for (const AddedTokenSpec& token : spec.added_tokens) {
    const std::optional<int32_t> known = vocabulary.Find(token.content);
    if (known && *known != token.id) {
      faults->Add("added_tokens: {:?} has id {}, but also id {}", token.content, token.id, *known);
      continue;
    }
    vocabulary.Reserve(token.id);
    if (!known && vocabulary.exists_[token.id]) {
      faults->Add("added_tokens: {:?} has id {}, which another token has too", token.content,
                  token.id);
      continue;
    }
    vocabulary.exists_[token.id] = 1;
    // A token of its own stands for its content, also where all its characters happen to be letters
    // of the byte-level alphabet ("\u00fc" is a u with diaeresis, not the byte 0xFC).
    if (!known && spec.byte_level) vocabulary.bytes_[token.id] = token.content;
    if (!known && !spec.byte_level) vocabulary.Respell(spec.decoder, token.id, token.content);
    if (token.special) vocabulary.special_[token.id] = 1;
    vocabulary.added_.emplace(token.content, token.id);
  }
  return vocabulary;
}

std::optional<int32_t> Vocabulary::FindModelToken(std::string_view spelling) const {
  if (!byte_level_) return Get(pieces_, spelling);
  std::string bytes;
  if (FromByteLevel(spelling, &bytes)) return Get(pieces_, bytes);
  return Get(other_spelling_, spelling);
}

std::optional<int32_t> Vocabulary::Find(std::string_view spelling) const {
  if (const std::optional<int32_t> id = Get(added_, spelling)) return id;
  return FindModelToken(spelling);
}

}  // namespace quantd

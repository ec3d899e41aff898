// Vocabulary: the tokens, by id and by spelling. Immutable after Create, safe from any thread.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/tokenizer_spec.h"
#include "kernels/fault_list.h"

namespace quantd {

class Vocabulary {
 public:
  /// Takes the model's vocabulary and the added tokens of `spec`; an id of two tokens, or a token
  /// with two ids, is added to `faults`.
  static Vocabulary Create(const TokenizerSpec& spec, FaultList* faults);

  /// Gives a token of a vocabulary that is not byte-level the text of another spelling.
  void Respell(const TextDecoderSpec& decoder, int32_t id, std::string_view spelling);

  int32_t size() const { return static_cast<int32_t>(bytes_.size()); }
  std::string_view Bytes(int32_t id) const { return InRange(id) ? bytes_[id] : std::string_view(); }
  bool IsSpecial(int32_t id) const { return InRange(id) && special_[id] != 0; }
  bool Exists(int32_t id) const { return InRange(id) && exists_[id] != 0; }
  /// Whether the token is one of byte fallback.
  bool IsByte(int32_t id) const { return InRange(id) && is_byte_[id] != 0; }
  /// How the file spells the token.
  std::string_view Spelling(int32_t id) const;

  /// The token spelled so in the file, added or not.
  std::optional<int32_t> Find(std::string_view spelling) const;
  /// The token of the model's vocabulary (not an added one) spelled so in the file.
  std::optional<int32_t> FindModelToken(std::string_view spelling) const;
  /// The token of the model's vocabulary that is this piece of a text: its bytes in a byte-level
  /// vocabulary, else its spelling.
  std::optional<int32_t> FindPiece(std::string_view piece) const { return Get(pieces_, piece); }

 private:
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view s) const { return std::hash<std::string_view>()(s); }
  };
  using Map = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;
  static std::optional<int32_t> Get(const Map& map, std::string_view key);
  bool InRange(int32_t id) const { return id >= 0 && id < size(); }
  void Reserve(int32_t id);

  bool byte_level_ = true;
  std::vector<std::string> bytes_;      // by id; empty where no token has the id
  std::vector<std::string> spellings_;  // by id, where they differ from the bytes
  std::vector<uint8_t> exists_;
  std::vector<uint8_t> special_;
  std::vector<uint8_t> is_byte_;
  Map pieces_;          // the model's tokens; byte-level: those spelled in its alphabet, by bytes
  Map other_spelling_;  // byte-level: the model's tokens that are not
  Map added_;           // by content
};

}  // namespace quantd

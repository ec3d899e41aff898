// From SentencePiece's protocol buffer to a TokenizerSpec; see sentencepiece_model.h.
//
// SentencePiece merges the neighbours whose union is the piece of the highest score. So each way in
// which two pieces make a third is a merge here, ranked by the score of the third.
#include "engine/text/sentencepiece_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr std::string_view kSpace = "\u2581";  // what a space is spelled as

// The fields of one message, in order. False from Next at the end, or where the bytes are
// malformed.
class Fields {
 public:
  explicit Fields(std::string_view message) : bytes_(message) {}

  uint32_t number = 0;     // of the field
  uint64_t value = 0;      // varint or fixed
  std::string_view bytes;  // length-delimited
  bool malformed() const { return malformed_; }

  bool Next() {
    if (bytes_.empty()) return false;
    uint64_t tag = 0;
    malformed_ = !Varint(&tag);
    if (malformed_) return false;
    number = static_cast<uint32_t>(tag >> 3);
    value = 0;
    bytes = {};
    switch (tag & 7) {
      case 0: malformed_ = !Varint(&value); break;
      case 1: malformed_ = !Fixed(8); break;
      case 5: malformed_ = !Fixed(4); break;
      case 2: {
        uint64_t size = 0;
        malformed_ = !Varint(&size) || size > bytes_.size();
        if (malformed_) break;
        bytes = bytes_.substr(0, size);
        bytes_.remove_prefix(size);
        break;
      }
      default: malformed_ = true;
    }
    return !malformed_;
  }

 private:
  bool Varint(uint64_t* out) {
    *out = 0;
    for (int shift = 0; shift < 64 && !bytes_.empty(); shift += 7) {
      const uint8_t byte = static_cast<uint8_t>(bytes_.front());
      bytes_.remove_prefix(1);
      *out |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool Fixed(size_t size) {
    if (bytes_.size() < size) return false;
    for (size_t i = 0; i < size; ++i) {
      value |= static_cast<uint64_t>(static_cast<uint8_t>(bytes_[i])) << (8 * i);
    }
    bytes_.remove_prefix(size);
    return true;
  }

  std::string_view bytes_;
  bool malformed_ = false;
};

enum class PieceType : uint64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

struct Piece {
  std::string_view text;
  float score = 0;
  PieceType type = PieceType::kNormal;
};

struct Model {
  std::vector<Piece> pieces;
  uint64_t model_type = 1;  // unigram
  bool byte_fallback = false;
  bool whitespace_suffix = false;
  int32_t bos_id = 1, eos_id = 2;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
  bool character_map = false;  // a normalization other than identity
};

absl::Status Malformed(std::string_view what) { return DataLoss("{}: malformed", what); }

absl::Status ReadPiece(std::string_view bytes, size_t id, std::vector<Piece>* pieces) {
  Piece piece;
  Fields fields(bytes);
  while (fields.Next()) {
    if (fields.number == 1) piece.text = fields.bytes;
    if (fields.number == 2) piece.score = std::bit_cast<float>(static_cast<uint32_t>(fields.value));
    if (fields.number == 3) piece.type = static_cast<PieceType>(fields.value);
  }
  const std::string name = fmt::format("pieces[{}]", id);
  if (fields.malformed()) return Malformed(name);
  if (piece.text.empty() || ValidUtf8Prefix(piece.text) != piece.text.size()) {
    return DataLoss("{}.piece: empty, or not valid UTF-8", name);
  }
  if (std::isnan(piece.score)) return DataLoss("{}.score: not a number", name);
  if (piece.type < PieceType::kNormal || piece.type > PieceType::kByte) {
    return DataLoss("{}.type: {} is not a type", name, static_cast<uint64_t>(piece.type));
  }
  if (piece.type == PieceType::kUnused) return Unimplemented("{}: UNUSED is not supported", name);
  pieces->push_back(piece);
  return absl::OkStatus();
}

absl::Status ReadTrainerSpec(std::string_view bytes, Model* model) {
  Fields fields(bytes);
  while (fields.Next()) {
    switch (fields.number) {
      case 3: model->model_type = fields.value; break;
      case 24: model->whitespace_suffix = fields.value != 0; break;
      case 35: model->byte_fallback = fields.value != 0; break;
      case 41: model->bos_id = static_cast<int32_t>(fields.value); break;
      case 42: model->eos_id = static_cast<int32_t>(fields.value); break;
      default: break;
    }
  }
  return fields.malformed() ? Malformed("trainer_spec") : absl::OkStatus();
}

absl::Status ReadNormalizerSpec(std::string_view bytes, Model* model) {
  Fields fields(bytes);
  while (fields.Next()) {
    switch (fields.number) {
      case 2: model->character_map |= !fields.bytes.empty(); break;
      case 3: model->add_dummy_prefix = fields.value != 0; break;
      case 4: model->remove_extra_whitespaces = fields.value != 0; break;
      case 5: model->escape_whitespaces = fields.value != 0; break;
      default: break;
    }
  }
  return fields.malformed() ? Malformed("normalizer_spec") : absl::OkStatus();
}

absl::StatusOr<Model> ReadModel(std::string_view bytes) {
  Model model;
  Fields fields(bytes);
  while (fields.Next()) {
    switch (fields.number) {
      case 1:
        if (model.pieces.size() == kMaxTokens) return DataLoss("more than {} pieces", kMaxTokens);
        RETURN_IF_ERROR(ReadPiece(fields.bytes, model.pieces.size(), &model.pieces));
        break;
      case 2: RETURN_IF_ERROR(ReadTrainerSpec(fields.bytes, &model)); break;
      case 3: RETURN_IF_ERROR(ReadNormalizerSpec(fields.bytes, &model)); break;
      case 5: {
        Model denormalizer;
        RETURN_IF_ERROR(ReadNormalizerSpec(fields.bytes, &denormalizer));
        if (denormalizer.character_map) return Unimplemented("denormalizer_spec is not supported");
        break;
      }
      default: break;  // its self test, and what later versions add
    }
  }
  if (fields.malformed() || model.pieces.empty()) {
    return DataLoss("not a SentencePiece model, or cut off");
  }
  return model;
}

absl::Status CheckSupported(const Model& model) {
  constexpr const char* kTypes[] = {"UNIGRAM", "BPE", "WORD", "CHAR"};
  if (model.model_type != 2) {
    const uint64_t type = model.model_type;
    return Unimplemented("trainer_spec.model_type: {} is not supported, BPE is",
                         type >= 1 && type <= 4 ? kTypes[type - 1] : std::to_string(type));
  }
  if (model.character_map) {
    return Unimplemented("normalizer_spec: one other than identity is not supported");
  }
  if (model.remove_extra_whitespaces) {
    return Unimplemented("normalizer_spec.remove_extra_whitespaces: true is not supported");
  }
  if (!model.escape_whitespaces) {
    return Unimplemented("normalizer_spec.escape_whitespaces: false is not supported");
  }
  if (model.whitespace_suffix) {
    return Unimplemented("trainer_spec.treat_whitespace_as_suffix: true is not supported");
  }
  return absl::OkStatus();
}

// Every way in which two pieces make a third, ranked by the third's score.
absl::Status MakeMerges(const Model& model, BpeSpec* bpe) {
  std::unordered_map<std::string_view, const Piece*> normal;
  std::vector<float> scores;
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    normal.emplace(piece.text, &piece);
    scores.push_back(piece.score);
  }
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  constexpr size_t kMaxPieceBytes = 4096;  // its ways to be cut are tried, each a copy
  for (const Piece& piece : model.pieces) {
    if (piece.type != PieceType::kNormal) continue;
    if (piece.text.size() > kMaxPieceBytes) {
      return Unimplemented("a piece of {} bytes: at most {} are supported", piece.text.size(),
                           kMaxPieceBytes);
    }
    const auto rank = std::lower_bound(scores.begin(), scores.end(), piece.score, std::greater<>());
    for (size_t cut = NextUtf8(piece.text).size; cut < piece.text.size();
         cut += NextUtf8(piece.text.substr(cut)).size) {
      const std::string_view left = piece.text.substr(0, cut), right = piece.text.substr(cut);
      if (!normal.contains(left) || !normal.contains(right)) continue;
      bpe->merges.emplace_back(left, right);
      bpe->ranks.push_back(static_cast<uint32_t>(rank - scores.begin()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ParseSentencePieceModel(std::string_view bytes, TokenizerSpec* spec) {
  ASSIGN_OR_RETURN(const Model model, ReadModel(bytes));
  RETURN_IF_ERROR(CheckSupported(model));
  spec->byte_level = false;
  if (model.add_dummy_prefix) {
    NormalizerStep prepend;
    prepend.kind = NormalizerStep::Kind::kPrepend;
    prepend.content = kSpace;
    spec->normalizers.push_back(prepend);
    spec->decoder.strip = " ";
    spec->decoder.strip_start = 1;
  }
  NormalizerStep replace;
  replace.kind = NormalizerStep::Kind::kReplace;
  replace.pattern = " ";
  replace.content = kSpace;
  spec->normalizers.push_back(replace);
  spec->decoder.edits = {{TextDecoderSpec::Edit::Kind::kReplace, std::string(kSpace), " "}};
  spec->decoder.byte_fallback = true;
  spec->bpe.byte_fallback = model.byte_fallback;
  spec->bpe.fuse_unk = true;
  std::unordered_set<std::string_view> known;
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const Piece& piece = model.pieces[id];
    if (!known.insert(piece.text).second) {
      return DataLoss("pieces[{}]: {:?} is another piece too", id, piece.text);
    }
    spec->bpe.vocab.emplace_back(piece.text, static_cast<int32_t>(id));
    if (piece.type == PieceType::kUnknown) spec->bpe.unk_token = piece.text;
    if (piece.type == PieceType::kNormal || piece.type == PieceType::kByte) continue;
    AddedTokenSpec token;
    token.id = static_cast<int32_t>(id);
    token.content = piece.text;
    token.normalized = false;
    token.model_symbol = piece.type == PieceType::kUserDefined;
    token.special = !token.model_symbol;
    spec->added_tokens.push_back(std::move(token));
  }
  const auto control = [&](int32_t id) -> std::optional<std::string> {
    if (id < 0 || static_cast<size_t>(id) >= model.pieces.size()) return std::nullopt;
    return std::string(model.pieces[id].text);
  };
  spec->bos_token = control(model.bos_id);
  spec->eos_token = control(model.eos_id);
  return MakeMerges(model, &spec->bpe);
}

}  // namespace quantd

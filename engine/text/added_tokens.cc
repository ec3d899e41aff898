// Added tokens by a trie; see added_tokens.h. The rules are those of AddedVocabulary in Hugging
// Face's tokenizers: leftmost-longest, not overlapping, white space and word characters as Unicode
// has them.
#include "engine/text/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>

#include "engine/text/utf8.h"

namespace quantd {
namespace {

bool IsSpace(char32_t c) { return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_WHITE_SPACE); }

// \w of UTS #18: alphabetic, marks, decimal numbers, connectors and join controls.
bool IsWord(char32_t code_point) {
  const UChar32 c = static_cast<UChar32>(code_point);
  constexpr uint32_t kMask = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || (U_GET_GC_MASK(c) & kMask) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWord(NextUtf8(text.substr(PreviousUtf8(text, text.size()))).code_point);
}

bool StartsWithWord(std::string_view text) {
  return !text.empty() && IsWord(NextUtf8(text).code_point);
}

// Where the white space that ends at `end` begins, not before `from`.
size_t SpaceBefore(std::string_view text, size_t from, size_t end) {
  while (end > from) {
    const size_t at = PreviousUtf8(text, end);
    if (!IsSpace(NextUtf8(text.substr(at)).code_point)) break;
    end = at;
  }
  return end;
}

size_t SpaceAfter(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Utf8Unit unit = NextUtf8(text.substr(at));
    if (!IsSpace(unit.code_point)) break;
    at += unit.size;
  }
  return at;
}

}  // namespace

AddedTokens::AddedTokens() : nodes_(1) { starts_.fill(-1); }

int32_t AddedTokens::Child(int32_t node, uint8_t byte) const {
  if (node == 0) return starts_[byte];
  int32_t child = nodes_[node].first_child;
  while (child >= 0 && nodes_[child].byte != byte) child = nodes_[child].next_sibling;
  return child;
}

void AddedTokens::Add(const AddedTokenSpec& token, std::string_view pattern) {
  int32_t node = 0;
  for (const char c : pattern) {
    const uint8_t byte = static_cast<uint8_t>(c);
    int32_t child = Child(node, byte);
    if (child < 0) {
      child = static_cast<int32_t>(nodes_.size());
      nodes_.push_back({byte, -1, nodes_[node].first_child, -1});
      nodes_[node].first_child = child;
      if (node == 0) starts_[byte] = child;
    }
    node = child;
  }
  if (node == 0) return;  // normalized to nothing: can never be found
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back({token.id, token.single_word, token.lstrip, token.rstrip});
}

int32_t AddedTokens::Longest(std::string_view text, size_t* size) const {
  int32_t node = 0, found = -1;
  for (size_t i = 0; i < text.size(); ++i) {
    node = Child(node, static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    if (nodes_[node].token >= 0) {
      found = nodes_[node].token;
      *size = i + 1;
    }
  }
  return found;
}

void AddedTokens::Split(std::string_view text, std::vector<TextSegment>* segments) const {
  size_t done = 0;       // text before this is in segments
  size_t space_end = 0;  // a run of white space, seen already, ends here: keeps rstrip linear
  for (size_t at = 0; at < text.size();) {
    size_t size = 0;
    const int32_t found = Longest(text.substr(at), &size);
    if (found < 0) {
      ++at;
      continue;
    }
    const Token& token = tokens_[found];
    size_t start = at, stop = at + size;
    at = stop;  // patterns are whole code points, so matches begin and end between them
    if (token.single_word &&
        (EndsWithWord(text.substr(0, start)) || StartsWithWord(text.substr(stop)))) {
      continue;
    }
    if (token.lstrip) {
      start = std::max(done, SpaceBefore(text, std::min(done, start), start));
      if (start >= stop) continue;  // itself white space, which the token before has taken
    }
    if (token.rstrip) {
      if (stop >= space_end) space_end = SpaceAfter(text, stop);
      stop = std::max(stop, space_end);
    }
    if (done < start) segments->push_back({text.substr(done, start - done), -1});
    segments->push_back({text.substr(start, stop - start), token.id});
    done = stop;
  }
  if (done < text.size()) segments->push_back({text.substr(done), -1});
}

}  // namespace quantd

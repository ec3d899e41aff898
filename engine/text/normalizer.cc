// Normalization forms by ICU; see normalizer.h.
//
// ICU puts combining marks in canonical order by insertion, which is quadratic in a run of them (8
// s for 250 kB of alternating U+0315 and U+0300). So runs that no natural text has are sorted
// beforehand.
#include "engine/text/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <utility>

#include "engine/text/utf8.h"
#include "kernels/status.h"

namespace quantd {
namespace {

const icu::Normalizer2* Instance(NormalizationForm form, UErrorCode& error) {
  switch (form) {
    case NormalizationForm::kNfc: return icu::Normalizer2::getNFCInstance(error);
    case NormalizationForm::kNfd: return icu::Normalizer2::getNFDInstance(error);
    case NormalizationForm::kNfkc: return icu::Normalizer2::getNFKCInstance(error);
    case NormalizationForm::kNfkd: return icu::Normalizer2::getNFKDInstance(error);
  }
  return nullptr;
}

NormalizationForm DecompositionOf(NormalizationForm form) {
  const bool compatible = form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd;
  return compatible ? NormalizationForm::kNfkd : NormalizationForm::kNfd;
}

// Longer runs of marks are sorted here; Unicode's stream-safe format (UAX #15) allows 30 in natural
// text.
constexpr size_t kLongRun = 64;

struct Mark {
  char32_t code_point;
  uint8_t combining_class;
};

// Appends `run`, code points that may reorder with those before them, decomposed and in canonical
// order.
void AppendSorted(const icu::Normalizer2& decomposer, std::string_view run, std::string* out) {
  std::vector<Mark> marks;
  icu::UnicodeString decomposed;
  const auto add = [&](UChar32 c) {
    marks.push_back({static_cast<char32_t>(c), decomposer.getCombiningClass(c)});
  };
  for (size_t at = 0; at < run.size();) {
    const Utf8Unit unit = NextUtf8(run.substr(at));
    at += unit.size;
    const UChar32 c = static_cast<UChar32>(unit.code_point);
    if (!decomposer.getDecomposition(c, decomposed)) {
      add(c);
      continue;
    }
    for (int32_t i = 0; i < decomposed.length(); i = decomposed.moveIndex32(i, 1)) {
      add(decomposed.char32At(i));
    }
  }
  const auto is_starter = [](const Mark& mark) { return mark.combining_class == 0; };
  for (auto begin = marks.begin(); begin != marks.end();) {
    const auto end = std::find_if(begin, marks.end(), is_starter);
    std::stable_sort(begin, end, [](const Mark& a, const Mark& b) {
      return a.combining_class < b.combining_class;
    });
    begin = std::find_if_not(end, marks.end(), is_starter);
  }
  icu::UnicodeString sorted;
  for (const Mark& mark : marks) sorted.append(static_cast<UChar32>(mark.code_point));
  sorted.toUTF8String(*out);
}

// An equivalent of `text` in which long runs of marks are in canonical order.
std::string SortLongRuns(const icu::Normalizer2& decomposer, std::string_view text) {
  std::string out;
  size_t copied = 0;  // text before this is in out
  size_t run = 0, count = 0;
  for (size_t at = 0; at <= text.size();) {
    const Utf8Unit unit = at < text.size() ? NextUtf8(text.substr(at)) : Utf8Unit{};
    const bool in_run = at < text.size() && unit.code_point >= 0x300 &&  // the first mark
                        !decomposer.hasBoundaryBefore(static_cast<UChar32>(unit.code_point));
    if (!in_run) {
      if (count > kLongRun) {
        out.append(text.substr(copied, run - copied));
        AppendSorted(decomposer, text.substr(run, at - run), &out);
        copied = at;
      }
      if (at == text.size()) break;
      count = 0;
      run = at + unit.size;
    } else {
      ++count;
    }
    at += unit.size;
  }
  out.append(text.substr(copied));
  return out;
}

}  // namespace

absl::StatusOr<std::string> Normalize(const std::vector<NormalizationForm>& forms,
                                      std::string_view text) {
  std::string current(text);
  for (const NormalizationForm form : forms) {
    UErrorCode error = U_ZERO_ERROR;
    const icu::Normalizer2* normalizer = Instance(form, error);
    const icu::Normalizer2* decomposer = Instance(DecompositionOf(form), error);
    std::string out;
    if (U_SUCCESS(error)) {
      current = SortLongRuns(*decomposer, current);
      icu::StringByteSink<std::string> sink(&out, static_cast<int32_t>(current.size()));
      normalizer->normalizeUTF8(
          0, icu::StringPiece(current.data(), static_cast<int32_t>(current.size())), sink, nullptr,
          error);
    }
    if (U_FAILURE(error)) return Internal("ICU cannot normalize the text: {}", u_errorName(error));
    current = std::move(out);
  }
  return current;
}

}  // namespace quantd

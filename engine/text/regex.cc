// PCRE2 behind Regex; see regex.h.
#include "engine/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "engine/text/oniguruma.h"
#include "engine/text/utf8.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

// Backtracking steps of one match. The patterns in use take at most a few per byte of the run that
// they match; a pattern that needs more is one that would hold a worker for minutes.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr size_t kJitStackStart = 32 << 10;
constexpr size_t kJitStackMax = 8 << 20;

std::string ErrorText(int code) {
  PCRE2_UCHAR8 text[256];
  pcre2_get_error_message_8(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

}  // namespace

Regex::Scratch::Scratch()
    : match_(pcre2_match_data_create_8(1, nullptr)),
      context_(pcre2_match_context_create_8(nullptr)),
      stack_(pcre2_jit_stack_create_8(kJitStackStart, kJitStackMax, nullptr)) {
  QUANTD_CHECK(match_ != nullptr && context_ != nullptr, "out of memory");
  pcre2_set_match_limit_8(context_, kMatchLimit);
  // Without a stack of our own (no JIT on this machine), PCRE2 uses the machine's.
  if (stack_ != nullptr) pcre2_jit_stack_assign_8(context_, nullptr, stack_);
}

Regex::Scratch::~Scratch() {
  pcre2_match_data_free_8(match_);
  pcre2_match_context_free_8(context_);
  if (stack_ != nullptr) pcre2_jit_stack_free_8(stack_);
}

void Regex::Free::operator()(pcre2_real_code_8* code) const { pcre2_code_free_8(code); }

absl::StatusOr<Regex> Regex::Compile(const std::string& pattern, bool literal) {
  std::string source = pattern;
  uint32_t options = PCRE2_UTF | PCRE2_LITERAL;
  if (!literal) {
    ASSIGN_OR_RETURN(source, OnigurumaToPcre2(pattern));
    options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
  }
  pcre2_compile_context_8* context = pcre2_compile_context_create_8(nullptr);
  QUANTD_CHECK(context != nullptr, "out of memory");
  pcre2_set_newline_8(context, PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code_8* code = pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(source.data()), source.size(),
                                       options, &error, &offset, context);
  pcre2_compile_context_free_8(context);
  if (code == nullptr) {
    return Unimplemented("pattern {:?}: {} (at byte {} of {:?})", pattern, ErrorText(error), offset,
                         source);
  }
  // Where there is no JIT, PCRE2 interprets.
  pcre2_jit_compile_8(code, PCRE2_JIT_COMPLETE);
  return Regex(pattern, code);
}

bool Regex::MatchesNothing(Scratch* scratch) const {
  const auto* nothing = reinterpret_cast<PCRE2_SPTR8>("");
  return pcre2_match_8(code_.get(), nothing, 0, 0, 0, scratch->match_, scratch->context_) >= 0;
}

absl::Status Regex::Split(
    std::string_view text, Scratch* scratch,
    absl::FunctionRef<absl::Status(std::string_view part, bool is_match)> emit) const {
  const auto* subject = reinterpret_cast<PCRE2_SPTR8>(text.data());
  size_t from = 0;  // where to look next
  size_t done = 0;  // text before this was emitted
  bool matched = false;
  while (from <= text.size() && !text.empty()) {
    // Without NO_UTF_CHECK each call would read the whole text again.
    const int result = pcre2_match_8(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK,
                                     scratch->match_, scratch->context_);
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return ResourceExhausted("pattern {:?} at byte {} of a text of {}: {}", pattern_, from,
                               text.size(), ErrorText(result));
    }
    const size_t* ends = pcre2_get_ovector_pointer_8(scratch->match_);
    const size_t begin = ends[0], end = ends[1];
    if (begin == end && matched && end == done) {
      // An empty match right after a match does not count: look again one code point on.
      if (from == text.size()) break;
      from += NextUtf8(text.substr(from)).size;
      continue;
    }
    if (done < begin) RETURN_IF_ERROR(emit(text.substr(done, begin - done), false));
    if (begin < end) RETURN_IF_ERROR(emit(text.substr(begin, end - begin), true));
    matched = true;
    done = from = end;
  }
  if (done < text.size()) return emit(text.substr(done), false);
  return absl::OkStatus();
}

}  // namespace quantd

// Regex: a PCRE2 pattern. Immutable after Compile, safe from any thread; each caller brings its own
// scratch memory.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"

// PCRE2's own names: its header needs a macro and stays in regex.cc.
extern "C" {
struct pcre2_real_code_8;
struct pcre2_real_match_data_8;
struct pcre2_real_match_context_8;
struct pcre2_real_jit_stack_8;
}

namespace quantd {

class Regex {
 public:
  /// Memory for matching: one per thread at a time, for any number of patterns.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

   private:
    friend class Regex;
    pcre2_real_match_data_8* match_;       // owned
    pcre2_real_match_context_8* context_;  // owned
    pcre2_real_jit_stack_8* stack_;        // owned
  };

  /// `literal`: the text itself; else a regular expression as Oniguruma reads it. UNIMPLEMENTED,
  /// naming the pattern, where it does not compile.
  static absl::StatusOr<Regex> Compile(const std::string& pattern, bool literal);

  /// Calls `emit` for each part of `text` (valid UTF-8) in order: matches, and what lies between
  /// them; nothing is empty. Stops at the first error of `emit`. RESOURCE_EXHAUSTED where matching
  /// goes beyond PCRE2's limits.
  absl::Status Split(
      std::string_view text, Scratch* scratch,
      absl::FunctionRef<absl::Status(std::string_view part, bool is_match)> emit) const;

  /// Whether the pattern matches the empty text.
  bool MatchesNothing(Scratch* scratch) const;

 private:
  struct Free {
    void operator()(pcre2_real_code_8* code) const;
  };
  Regex(std::string pattern, pcre2_real_code_8* code) : pattern_(std::move(pattern)), code_(code) {}

  std::string pattern_;  // as given, for messages
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

}  // namespace quantd

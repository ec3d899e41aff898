// EvaluateProfiles: every profile of a list on one model and one text, one after the other, beside
// the reference, which stays loaded. The work of `quantd eval`.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/eval/eval_result.h"
#include "server/backends.h"

namespace quantd {

struct EvaluateOptions {
  std::string model;                  // folder
  std::vector<std::string> profiles;  // names or files; empty: all built-in ones, or, for a
                                      // quantized checkpoint, the checkpoint as it is
  std::string reference;        // profile; empty: 16-bit where the checkpoint is full-precision
  std::string reference_model;  // folder of the full-precision original; empty: `model`
  std::string text;             // file, .jsonl or plain
  std::string journal;          // file that keeps what is measured; empty: none
  BackendOptions backend;
  std::string reference_backend;  // its name, where it is another one
  int64_t context = 0;            // tokens of a window; 0: the model's, at most 2048
  int64_t stride = 0;             // from one window to the next; 0: no overlap
  int64_t max_tokens = 0;         // of the text that are scored; 0: all
};

/// The value of EvaluateOptions::reference that says: none, nothing is compared.
inline constexpr char kNoReference[] = "none";

struct EvaluateProgress {
  std::string profile;
  size_t profile_index = 0, num_profiles = 0;
  int64_t window = 0, num_windows = 0;  // done, of this profile; 0: it is loaded and sampled
  double seconds_left = 0.0;            // of all profiles, by the rate so far; 0: not known yet
};

/// Profiles that cannot be loaded, or break, are in the report with their refusals. Errors:
/// INVALID_ARGUMENT and NOT_FOUND for what the options name, and those of loading the reference, of
/// EvalJournal and MakeEvalText. `on_progress` may be empty.
absl::StatusOr<EvalReport> EvaluateProfiles(
    const EvaluateOptions& options, std::function<void(const EvaluateProgress&)> on_progress);

}  // namespace quantd

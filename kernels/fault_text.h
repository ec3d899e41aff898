// The grammar of quantd's messages about what the outside world got wrong, and its parser.
//
//   [place: ]what[; fix]             vocab: 0 must be positive
//                                    no profile "nf5"; the nearest known one is nf4
//   [place: ]what, allowed: values   n is 9, allowed: 1 to 8
//   [place: ]x is not one of values  dtype: "f8" is not one of auto, float32
//
// The fix is what would work: what `quantd validate` shows as such. In double quotes, where names
// and values out of files stand, nothing separates. Several faults are kept apart by FaultList: the
// one message that it joins of them is for people. tests/server/validate_test.cc and
// broken_model_process_test.cc hold the messages to it. Pure functions.
#pragma once

#include <string>
#include <string_view>

namespace quantd {

struct FaultParts {
  std::string what;  // with its place
  std::string fix;   // "allowed: 1 to 8"; empty: the message has none
};

/// Both parts of one fault's message. In the third form the list is in both: without it there is no
/// sentence.
FaultParts SplitFault(std::string_view message);

/// The words of another library, with " - " for what would be a separator here.
std::string ForeignWords(std::string_view words);

}  // namespace quantd

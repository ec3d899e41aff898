// OneLine: text that may quote a stranger's file, made fit for a terminal. Pure function.
#pragma once

#include <string>

namespace quantd {

/// `message` as one line of bounded length: control characters as \x1b, bytes that are no UTF-8 as
/// U+FFFD, and a text of more than some kilobytes cut in the middle, as the file is named in front
/// and the fault often at the end.
std::string OneLine(std::string message);

}  // namespace quantd

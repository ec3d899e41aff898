// Text that may quote a stranger's file or request, made fit for a terminal and a log.
// Pure functions.
#pragma once

#include <string>
#include <string_view>

namespace quantd {

/// `text` with control characters as \x1b, bytes that are no UTF-8 as U+FFFD, and what ends lines
/// or turns their direction elsewhere in Unicode as \u2028.
std::string Printable(std::string_view text);

/// `message` so, and of bounded length: one of more than some kilobytes is cut in the middle, as
/// the file is named in front and the fault often at the end.
std::string OneLine(std::string message);

/// A name in an error: what a client sent, in quotes, at most some 64 bytes of it.
std::string Quoted(const std::string& text);

}  // namespace quantd

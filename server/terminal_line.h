// TerminalLine: one line of a terminal's stderr that rewrites itself, and is gone at the end. Not
// thread-safe.
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <string>

namespace quantd {

class TerminalLine {
 public:
  TerminalLine() = default;
  TerminalLine(const TerminalLine&) = delete;
  TerminalLine& operator=(const TerminalLine&) = delete;
  ~TerminalLine() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
  }

  void Draw(const std::string& text) {
    drawn_ = true;
    fmt::print(stderr, "\r\033[K{}", text);
    std::fflush(stderr);
  }

 private:
  bool drawn_ = false;
};

}  // namespace quantd

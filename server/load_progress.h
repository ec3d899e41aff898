// LoadProgressReporter: shows a load's progress: one line that rewrites itself on a terminal, log
// lines otherwise. Used from the loader thread.
#pragma once

#include <chrono>
#include <string>

#include "engine/load.h"
#include "server/terminal_line.h"

namespace quantd {

class LoadProgressReporter {
 public:
  /// `on_terminal`: write to stderr's terminal; otherwise log at most every two seconds.
  explicit LoadProgressReporter(bool on_terminal) : on_terminal_(on_terminal) {}

  void operator()(const LoadProgress& progress);

  /// "packing model.layers.3.mlp.up_proj: 12.1 of 25.2 MB (48%), 310.0 MB/s, 0 s left".
  static std::string Format(const LoadProgress& progress, double elapsed_seconds);

 private:
  const bool on_terminal_;
  TerminalLine line_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point shown_ = start_;
};

}  // namespace quantd

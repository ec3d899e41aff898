// Progress of a load, for people and for logs.
#include "server/load_progress.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

namespace quantd {

void LoadProgressReporter::operator()(const LoadProgress& progress) {
  const auto now = std::chrono::steady_clock::now();
  const auto interval =
      on_terminal_ ? std::chrono::milliseconds(100) : std::chrono::milliseconds(2000);
  if (now - shown_ < interval) return;
  shown_ = now;
  const std::string line = Format(progress, std::chrono::duration<double>(now - start_).count());
  if (on_terminal_) {
    line_.Draw(line);
  } else {
    spdlog::info("loading: {}", line);
  }
}

std::string LoadProgressReporter::Format(const LoadProgress& progress, double elapsed_seconds) {
  const double done = static_cast<double>(progress.bytes_done);
  const double total = static_cast<double>(progress.bytes_total);
  const double rate = elapsed_seconds > 0 ? done / elapsed_seconds : 0.0;
  const double left = rate > 0 ? (total - done) / rate : 0.0;
  return fmt::format("packing {}: {:.1f} of {:.1f} MB ({:.0f}%), {:.1f} MB/s, {:.0f} s left",
                     progress.current.empty() ? "weights" : progress.current, done / 1e6,
                     total / 1e6, total > 0 ? 100.0 * done / total : 0.0, rate / 1e6, left);
}

}  // namespace quantd

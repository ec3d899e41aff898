// UtcDate: today, as reports say it.
#pragma once

#include <ctime>
#include <string>

namespace quantd {

/// "2026-01-31", UTC.
inline std::string UtcDate() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%d", &utc));
}

}  // namespace quantd

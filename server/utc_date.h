// UtcDate: a day, as reports say it.
#pragma once

#include <ctime>
#include <string>

namespace quantd {

/// "2026-01-31", UTC; today's without `time`.
inline std::string UtcDate(std::time_t time = std::time(nullptr)) {
  std::tm utc{};
  gmtime_r(&time, &utc);
  char text[32];
  return std::string(text, std::strftime(text, sizeof(text), "%Y-%m-%d", &utc));
}

}  // namespace quantd

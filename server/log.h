// The process's log on stderr: lines for people, or JSON objects, one a line, for machines. What it
// quotes of others is made printable. Whoever reads it slowly loses lines, and holds up nothing.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace quantd {

/// "2026-01-31T12:00:00.000 info message", for people; what every command begins with.
void UseTextLog();
/// The log from here on: `level` as in the configuration, JSON or text. Call before threads start.
void ConfigureLog(const std::string& level, bool json);
/// Whether its lines are JSON objects.
bool LogsJson();
/// Says on stderr why the process ends: "quantd: ...", or a line of the JSON log.
void LogEnd(const absl::Status& status);

/// Logger whose payloads are members of a JSON object where the log is JSON, else text.
inline constexpr char kRequestLogger[] = "request";

}  // namespace quantd

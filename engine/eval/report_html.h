// RenderReport: an evaluation as one HTML page that needs nothing else: no script, no other file.
#pragma once

#include <string>

#include "engine/eval/eval_result.h"

namespace quantd {

extern const char kReportStyle[];  // report.css, compiled in

/// Light or dark as its reader's system is, and made to be printed.
std::string RenderReport(const EvalReport& report);

}  // namespace quantd

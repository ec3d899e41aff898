// The plots of an evaluation's report, as SVG elements in the page's own colours (report.css). Pure
// functions; "" where a plot would show nothing.
#pragma once

#include <string>

#include "engine/eval/eval_result.h"

namespace quantd {

/// Divergence (without a reference: perplexity) over resident bytes, and the Pareto front.
std::string QualityAgainstMemory(const EvalReport& report);
/// Retention of every profile with its interval.
std::string RetentionPlot(const EvalReport& report);
/// How often the likeliest token, and the five likeliest, are the reference's.
std::string AgreementPlot(const EvalReport& report);
/// The modules' own relative output error: profiles x layers, root mean square over a layer.
std::string ErrorByLayer(const EvalReport& report);
/// The same: profiles x kinds of module.
std::string ErrorByModule(const EvalReport& report);
/// Share of inputs that LLM.int8() keeps in floating point: kinds of module x layers, of the first
/// profile that has some.
std::string OutlierShares(const EvalReport& report);

/// The number in ".layers.<number>."; -1 for a module outside of layers.
int64_t LayerOf(const std::string& module);
/// "q_proj" of "model.layers.0.self_attn.q_proj".
std::string KindOf(const std::string& module);

}  // namespace quantd

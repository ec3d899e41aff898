#include "engine/eval/report_html.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <numeric>

#include "engine/eval/eval_summary.h"
#include "engine/eval/report_plots.h"
#include "engine/eval/svg.h"

namespace quantd {
namespace {

using svg::Escape;
using svg::Number;

using Out = std::back_insert_iterator<std::string>;

std::string Megabytes(int64_t bytes) {
  const double mb = static_cast<double>(bytes) * 1e-6;
  return mb >= 10000 ? fmt::format("{:.2f} GB", mb * 1e-3) : fmt::format("{:.1f} MB", mb);
}

std::string Count(int64_t n) {
  std::string digits = fmt::format("{}", n);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), 1, ',');
  }
  return digits;
}

const ProfileResult* Find(const EvalReport& report, const std::string& name) {
  for (const ProfileResult& p : report.profiles) {
    if (p.facts.name == name && p.refusal.empty()) return &p;
  }
  return nullptr;
}

std::string MeanText(const std::vector<int64_t>& values) {
  if (values.empty()) return "–";
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  return fmt::format("{:.1f}", sum / static_cast<double>(values.size()));
}

// "At least 99 % kept": the profile with the fewest bytes that does.
std::string Cards(const EvalReport& report) {
  const ProfileResult* reference = Find(report, report.reference);
  std::string cards;
  const ProfileResult* last = nullptr;
  for (const double share : {0.998, 0.99, 0.98, 0.95, 0.90}) {
    const ProfileResult* smallest = nullptr;
    for (const ProfileResult& p : report.profiles) {
      if (!p.refusal.empty() || !p.compared || p.retention.value < share) continue;
      const auto better = [](const ProfileResult& a, const ProfileResult& b) {
        return a.facts.resident_bytes != b.facts.resident_bytes
                   ? a.facts.resident_bytes < b.facts.resident_bytes
                   : a.retention.value > b.retention.value;
      };
      if (smallest == nullptr || better(p, *smallest)) smallest = &p;
    }
    if (smallest == nullptr || smallest == last) continue;
    last = smallest;
    const std::string of_reference =
        reference == nullptr
            ? ""
            : fmt::format(", {:.0f}% of {}",
                          100.0 * static_cast<double>(smallest->facts.resident_bytes) /
                              static_cast<double>(reference->facts.resident_bytes),
                          Escape(reference->facts.name));
    fmt::format_to(Out(cards),
                   "<div class=\"card\"><span>smallest that keeps {:.4g}%</span><b>{}</b>"
                   "<span>{:.2f}% kept; {}{}</span></div>\n",
                   100 * share, Escape(smallest->facts.name), 100 * smallest->retention.value,
                   Megabytes(smallest->facts.resident_bytes), of_reference);
  }
  return cards.empty() ? "" : "<div class=\"cards\">\n" + cards + "</div>\n";
}

std::string Table(const EvalReport& report) {
  const bool compared = !report.reference.empty();
  const std::vector<size_t> front = ParetoFront(report.profiles);
  std::string out =
      "<div class=\"scroll\"><table><thead><tr><th>profile<th>memory<th>bits a weight"
      "<th>perplexity<th>bits a byte";
  if (compared) {
    out += "<th>kept<th>KL mean<th>KL 99%<th>KL max<th>top-1<th>top-5<th>greedy tokens";
  }
  out += "<th>load, s<th>prefill, tok/s<th>decode, tok/s</tr></thead><tbody>\n";
  for (size_t i = 0; i < report.profiles.size(); ++i) {
    const ProfileResult& p = report.profiles[i];
    const bool on_front = std::find(front.begin(), front.end(), i) != front.end();
    fmt::format_to(Out(out), "<tr{}><td>{}", on_front ? " class=\"front\"" : "",
                   Escape(p.facts.name));
    if (!p.refusal.empty()) {
      fmt::format_to(Out(out), "<td class=\"refusal\" colspan=\"{}\">not measured: {}</tr>\n",
                     compared ? 14 : 7, Escape(p.refusal));
      continue;
    }
    const ProfileFacts& f = p.facts;
    fmt::format_to(Out(out), "<td>{}<td>{:.2f}<td>{:.3f}<td>{:.4f}", Megabytes(f.resident_bytes),
                   f.bits_per_weight, p.perplexity, p.bits_per_byte);
    if (compared) {
      fmt::format_to(Out(out), "<td>{:.2f}%<td>{}<td>{}<td>{}<td>{:.1f}%<td>{:.1f}%<td>{}",
                     100 * p.retention.value, Number(p.kl_mean, 2), Number(p.kl_p99, 2),
                     Number(p.kl_max, 2), 100 * p.top1, 100 * p.top5, MeanText(f.greedy_lengths));
    }
    fmt::format_to(Out(out), "<td>{:.2f}<td>{:.0f}<td>{:.0f}</tr>\n", f.load_seconds,
                   p.prefill_tokens_per_second, f.decode_tokens_per_second);
  }
  return out + "</tbody></table></div>\n";
}

std::string Figure(const std::string& title, const std::string& plot, const std::string& caption) {
  if (plot.empty()) return "";
  return fmt::format("<h2>{}</h2>\n<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n", title,
                     plot, caption);
}

std::string Definitions(const EvalReport& report) {
  std::string out = "<h2>What the figures are</h2>\n<dl>\n";
  const auto define = [&](const char* term, const std::string& meaning) {
    fmt::format_to(Out(out), "<dt>{}<dd>{}\n", term, meaning);
  };
  const std::string reference = Escape(report.reference);
  define("memory",
         "everything resident of the model: codes, scales, zero points, embedding, head, "
         "norms; without KV cache and workspace");
  define("perplexity", fmt::format("of {} predictions in windows of {} tokens, begun every {}; "
                                   "bits a byte: the same per byte of text, comparable between "
                                   "tokenizers",
                                   Count(report.tokens), report.context, report.stride));
  if (!report.reference.empty()) {
    define("kept", fmt::format("retention: the perplexity of {} divided by the profile's; the "
                               "interval is 95 %, of 1000 resamples of windows",
                               reference));
    define("KL", fmt::format("divergence of the profile's distribution of the next token from that "
                             "of {}, over the whole vocabulary, in nats",
                             reference));
    define("top-1, top-5",
           "how often the likeliest token is the same; how many of the reference's five likeliest "
           "are among the profile's");
    define("greedy tokens",
           fmt::format("how far greedy texts of both go together before the first other token; the "
                       "mean, of texts of {}, or less where both end",
                       report.greedy_tokens));
    define("error of a module",
           "of sampled rows, the root of the sum of squares of what quantization changes in a "
           "module's output, relative to that output, with the reference's input: what the module "
           "itself does, without what came before it");
  }
  define(
      "prefill, decode",
      "of the model alone, one sequence, without scheduler and batching: prefill with the logits "
      "of every token in steps of 128, decode one token a step. Not what a server reaches");
  return out + "</dl>\n";
}

}  // namespace

std::string RenderReport(const EvalReport& report) {
  const std::string model = Escape(report.model);
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<title>Quantization of {0}, "
      "measured</title>\n<style>\n{1}</style>\n</head>\n<body>\n<main>\n"
      "<h1>What quantization costs: {0}</h1>\n",
      model, kReportStyle);
  fmt::format_to(
      Out(page),
      "<p class=\"quiet\">{}, {:.4g} million parameters. {} tokens ({} bytes) of {}, in {} "
      "windows of {}. {}On {} ({}), quantd {}, <span class=\"whole\">{}</span>.</p>\n",
      Escape(report.architecture), static_cast<double>(report.parameters) * 1e-6,
      Count(report.tokens), Count(report.bytes), Escape(report.text), Count(report.windows),
      report.context,
      report.reference.empty()
          ? std::string()
          : fmt::format(
                "Compared with {}{}. ", Escape(report.reference),
                report.reference_model.empty() ? "" : " of " + Escape(report.reference_model)),
      Escape(report.backend), Escape(report.device), Escape(report.version), Escape(report.date));
  page += Cards(report);
  page += Figure("Quality against memory", QualityAgainstMemory(report),
                 "Filled and joined: the Pareto front, profiles that no other one beats in both. "
                 "Rings: another profile is at least as small and as close.");
  page += "<h2>All profiles</h2>\n" + Table(report);
  page += Figure("What is kept", RetentionPlot(report),
                 "Retention, with its 95 % interval. Above 100 % is noise, or luck on this text.");
  page += Figure("Agreement with the reference", AgreementPlot(report),
                 "Filled: the likeliest token is the same (top-1). Ring: of the reference's five "
                 "likeliest tokens, those among the profile's (top-5).");
  page += Figure("Where the error is made: layers", ErrorByLayer(report),
                 "Relative output error of a layer's modules, each by itself; root mean square. "
                 "Shades by the logarithm.");
  page += Figure("Where the error is made: modules", ErrorByModule(report),
                 "The same by kind of module, over all layers.");
  page += Figure("Outliers", OutlierShares(report),
                 "Share of a module's inputs at or above LLM.int8()'s threshold, which stay in "
                 "floating point.");
  page += Definitions(report);
  return page + "</main>\n</body>\n</html>\n";
}

}  // namespace quantd

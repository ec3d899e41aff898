// The report: JSON there and back, and the page.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/eval/eval_json.h"
#include "engine/eval/report_html.h"
#include "engine/eval/report_plots.h"
#include "engine/eval/svg.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

ProfileResult Profile(const std::string& name, int64_t bytes, double kl) {
  ProfileResult p;
  p.facts.name = name;
  p.facts.hash = name + "-hash";
  p.facts.compute_dtype = "bfloat16";
  p.facts.resident_bytes = bytes;
  p.facts.bits_per_weight = 4.5;
  p.facts.load_seconds = 0.125;
  p.facts.greedy_lengths = {64, 20};
  p.tokens = 1000;
  p.perplexity = 45.25 * std::exp(kl);
  p.bits_per_byte = 1.5;
  p.compared = true;
  p.retention = {std::exp(-kl), std::exp(-kl) - 0.01, std::exp(-kl) + 0.01};
  p.kl_mean = kl;
  p.kl_p99 = 10 * kl;
  p.kl_max = 20 * kl;
  p.top1 = 1 - kl;
  p.top5 = 1 - kl / 2;
  for (int layer = 0; layer < 3; ++layer) {
    for (const char* kind : {"self_attn.q_proj", "mlp.up_proj"}) {
      LinearError e;
      e.module = fmt::format("model.layers.{}.{}", layer, kind);
      e.format = "nf4";
      e.isolated = kl * (layer + 1);
      e.accumulated = 2 * kl;
      if (name == "int8") e.outlier_share = 0.001 * (layer + 1);
      p.facts.linears.push_back(e);
    }
  }
  p.facts.linears.push_back({"lm_head", "bf16", 0.0, kl, {}});
  return p;
}

EvalReport Report() {
  EvalReport r;
  r.version = "0.1";
  r.date = "2026-01-02";
  r.model = "models/<b>&amp";
  r.fingerprint = "0123456789abcdef";
  r.architecture = "LlamaForCausalLM";
  r.parameters = 12'590'000;
  r.backend = "cpu";
  r.device = "a \"processor\"";
  r.reference = "bf16";
  r.text = "text.txt";
  r.text_hash = "fedcba9876543210";
  r.documents = 1;
  r.windows = 20;
  r.tokens = 1000;
  r.bytes = 4000;
  r.context = r.stride = 64;
  r.greedy_tokens = 64;
  r.profiles = {Profile("bf16", 25'000'000, 0.0), Profile("int8", 16'000'000, 0.001),
                Profile("nf4", 11'600'000, 0.04), Profile("fp4", 11'600'000, 0.06)};
  r.profiles.push_back({});
  r.profiles.back().facts.name = "odd";
  r.profiles.back().refusal = "does not <fit>";
  return r;
}

TEST(EvalReportJson, GoesThereAndBack) {
  const EvalReport report = Report();
  const std::string json = ToJson(report);
  const auto read = EvalReportFromJson(json, "a.json");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ToJson(*read), json);
  EXPECT_EQ(read->profiles[1].facts.linears[5].outlier_share, 0.003);
  EXPECT_EQ(read->profiles[4].refusal, "does not <fit>");
  EXPECT_NEAR(*read->profiles[2].retention.low, *report.profiles[2].retention.low, 1e-5);
}

TEST(EvalReportJson, FaultsNameFileAndMember) {
  const std::string json = ToJson(Report());
  const auto without = [&](const std::string& from, const std::string& to) {
    std::string text = json;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    const auto read = EvalReportFromJson(text, "a.json");
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << from;
    return Message(read.status());
  };
  EXPECT_THAT(without("\"tokens\": 1000", "\"tokens\": \"many\""), HasSubstr("a.json: tokens"));
  EXPECT_THAT(without("\"fingerprint\"", "\"fingers\""), HasSubstr("a.json: fingerprint"));
  EXPECT_THAT(without("\"kl\":", "\"k\":"), HasSubstr("a.json: not an object"));
  EXPECT_THAT(without("\"profiles\"", "\"files\""), HasSubstr("a.json: profiles"));
  EXPECT_THAT(without("{", "["), HasSubstr("a.json"));
  EXPECT_THAT(without("\"resident_bytes\":16000000", "\"resident_bytes\":0"),
              HasSubstr("resident"));
  EXPECT_THAT(without("\"resident_bytes\":16000000", "\"resident_bytes\":18446744073709551615"),
              HasSubstr("resident_bytes"));
  EXPECT_THAT(without("\"low\":0.989", "\"lower\":0.989"), HasSubstr("retention.low"));
  EXPECT_THAT(without("\"mean\":0.001", "\"mean\":5e-324"), HasSubstr("kl.mean"));
  EXPECT_THAT(without("\"top1\":0.999", "\"top1\":1.5"), HasSubstr("top1"));
  EXPECT_EQ(EvalReportFromJson("[]", "a.json").status().code(), absl::StatusCode::kDataLoss);
}

// Every tag that is opened is closed, in order; but for those HTML closes by itself.
void ExpectBalanced(const std::string& page) {
  const std::vector<std::string> free = {"meta", "th", "td", "tr", "dt", "dd", "!doctype"};
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    size_t end = at;  // of the tag: a > outside of quotes
    for (bool quoted = false; end < page.size() && (quoted || page[end] != '>'); ++end) {
      if (page[end] == '"') quoted = !quoted;
    }
    const bool closes = page[at + 1] == '/';
    const size_t begin = at + (closes ? 2 : 1);
    const std::string name = page.substr(begin, page.find_first_of(" />", begin) - begin);
    at = end;
    if (page[end - 1] == '/' || std::find(free.begin(), free.end(), name) != free.end()) continue;
    if (!closes) {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << "</" << name << ">";
    ASSERT_EQ(open.back(), name);
    open.pop_back();
  }
  EXPECT_TRUE(open.empty()) << open.back();
}

TEST(RenderReport, IsOnePageThatNeedsNothingElse) {
  const std::string page = RenderReport(Report());
  for (const char* other : {"<script", "http:", "https:", "src=", "<link", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(other)));
  }
  EXPECT_THAT(page, HasSubstr("prefers-color-scheme: dark"));
  EXPECT_THAT(page, HasSubstr("@media print"));
  ExpectBalanced(page);
}

TEST(RenderReport, SaysWhatWasMeasuredAndEscapesNames) {
  const std::string page = RenderReport(Report());
  EXPECT_THAT(page, HasSubstr("models/&lt;b&gt;&amp;amp"));
  EXPECT_THAT(page, Not(HasSubstr("models/<b>")));
  EXPECT_THAT(page, HasSubstr("not measured: does not &lt;fit&gt;"));
  EXPECT_THAT(page, HasSubstr("smallest that keeps 99.8%</span><b>int8</b>"));
  EXPECT_THAT(page, HasSubstr("smallest that keeps 95%</span><b>nf4</b>"));
  EvalReport even = Report();
  even.profiles[3].retention.value = 0.97;  // fp4, as large as nf4
  EXPECT_THAT(RenderReport(even), HasSubstr("smallest that keeps 95%</span><b>fp4</b>"));
  for (const char* heading :
       {"Quality against memory", "All profiles", "What is kept", "Agreement with the reference",
        "Where the error is made: layers", "Where the error is made: modules", "Outliers"}) {
    EXPECT_THAT(page, HasSubstr(std::string("<h2>") + heading));
  }
  for (const char* odd : {">nan", ">inf", "\"nan", "\"inf", "(nan", "(inf", "-nan", "-inf"}) {
    EXPECT_THAT(page, Not(HasSubstr(odd)));
  }
}

TEST(RenderReport, WithoutAReferenceHasPerplexityOnly) {
  EvalReport report = Report();
  report.reference.clear();
  for (ProfileResult& p : report.profiles) p.compared = false;
  const std::string page = RenderReport(report);
  ExpectBalanced(page);
  EXPECT_THAT(page, HasSubstr("perplexity (log scale)"));
  EXPECT_THAT(page, Not(HasSubstr("What is kept")));
  EXPECT_THAT(page, Not(HasSubstr("Outliers")));
}

TEST(ReportPlots, HeatMapsShadeByTheLogarithm) {
  const std::string svg = ErrorByLayer(Report());
  // int8's first layer is the least of all errors, fp4's third the largest.
  EXPECT_THAT(svg, HasSubstr("<title>int8, 0: 0.10%</title>"));
  EXPECT_THAT(svg, HasSubstr("<title>fp4, 2: 18%</title>"));
  EXPECT_THAT(svg, HasSubstr("fill-opacity=\"0.06\""));
  EXPECT_THAT(svg, HasSubstr("fill-opacity=\"1.00\""));
  EXPECT_THAT(svg, Not(HasSubstr("bf16"))) << "the reference has no error";
  EXPECT_THAT(OutlierShares(Report()), HasSubstr("<title>up_proj, 2: 0.30%</title>"));
}

TEST(ReportPlots, ModulesHaveLayersAndKinds) {
  EXPECT_EQ(LayerOf("model.layers.17.mlp.up_proj"), 17);
  EXPECT_EQ(LayerOf("lm_head"), -1);
  EXPECT_EQ(LayerOf("model.layers.x"), -1);
  EXPECT_GT(LayerOf("model.layers.99999999999999999999999.mlp"), 0);
  EXPECT_EQ(KindOf("model.layers.17.mlp.up_proj"), "up_proj");
  EXPECT_EQ(KindOf("lm_head"), "lm_head");
}

TEST(Svg, TicksAreRound) {
  EXPECT_THAT(svg::Ticks({0, 10, 0, 100, false}, 5), ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(svg::Ticks({1, 100, 0, 100, true}, 5), ElementsAre(1, 2, 5, 10, 20, 50, 100));
  EXPECT_EQ(svg::Ticks({1e-6, 10, 0, 100, true}, 4).size(), 8u);
  EXPECT_TRUE(svg::Ticks({0, 10, 0, 100, true}, 4).empty());
  EXPECT_TRUE(svg::Ticks({0, INFINITY, 0, 100, false}, 4).empty());
  EXPECT_LE(svg::Ticks({1e20, 1e20 + 65536, 0, 100, false}, 8).size(), 17u);
  const svg::Scale log{1, 100, 0, 50, true};
  EXPECT_DOUBLE_EQ(log(10), 25);
  EXPECT_DOUBLE_EQ(log(1000), 50);
  const svg::Scale point{3, 3, 0, 50, false};
  EXPECT_DOUBLE_EQ(point(3), 25);
}

TEST(Svg, NumbersHaveTheDigitsAskedFor) {
  EXPECT_EQ(svg::Number(0.0001234, 2), "0.00012");
  EXPECT_EQ(svg::Number(1234.5, 2), "1234");
  EXPECT_EQ(svg::Number(0), "0");
  EXPECT_EQ(svg::Number(9.87, 2), "9.9");
  EXPECT_EQ(svg::Number(1.5e-9, 2), "1.5e-09");
  EXPECT_EQ(svg::Number(INFINITY), "–");
}

}  // namespace
}  // namespace quantd

// The report of a load: JSON that parses, a page that is well-formed and needs nothing else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

#include "server/bench/bench_report.h"
#include "server/bench/line_plot.h"

namespace quantd::bench {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr double kInfinite = std::numeric_limits<double>::infinity();

Summary Latencies(double seconds) {
  return {10, seconds, seconds, 2 * seconds, 3 * seconds, 4 * seconds, 5 * seconds};
}

BenchReport Report(int runs) {
  BenchReport report;
  report.target = "127.0.0.1:1";
  report.model = "a<b>&\"c\"";
  report.settings = {{"--num-prompts", "10"}};
  EXPECT_TRUE(report.slo.Add("", "ttft:200").ok());
  for (int i = 1; i <= runs; ++i) {
    RunResult run;
    run.load = {2.0 * i, 0};
    run.requests = 10;
    run.completed = 9;
    run.refused["UNAVAILABLE"] = 1;
    run.first_error = "bytes \xff";
    run.request_throughput = 1.5 * i;
    run.goodput = i;
    run.ttft = Latencies(0.1 * i);
    run.itl = Latencies(0.01 * i);
    run.e2el = Latencies(i);
    run.waiting = run.running = Latencies(i);
    for (int q = 0; q <= 100; ++q) run.ttft_quantiles.push_back(0.001 * q * i);
    report.runs.push_back(run);
  }
  return report;
}

TEST(BenchReport, JsonHasVllmsNamesAndMilliseconds) {
  BenchReport report = Report(2);
  report.runs.push_back({});
  report.runs.back().load = {kInfinite, 4};
  RequestRecord record;
  record.gaps = {0.25};
  report.details = {{record}};
  const auto json = nlohmann::json::parse(ToJson(report), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(json.is_object());
  const auto& run = json["runs"][1];
  EXPECT_EQ(run["completed"], 9);
  EXPECT_EQ(run["request_rate"], 4.0);
  EXPECT_EQ(run["request_goodput"], 2.0);
  EXPECT_EQ(run["refused"]["UNAVAILABLE"], 1);
  EXPECT_EQ(run["ttft_ms"]["p90"], 400.0);
  EXPECT_EQ(run["max_concurrency"], nullptr);
  EXPECT_EQ(json["runs"][2]["request_rate"], "inf");
  EXPECT_EQ(json["runs"][2]["max_concurrency"], 4);
  EXPECT_EQ(json["runs"][0]["requests"][0]["itls"][0], 0.25);
  EXPECT_FALSE(json["runs"][2].contains("requests"));
  EXPECT_EQ(json["server"]["model"], report.model);
}

TEST(BenchReport, TextHasALineARunOrAllOfOne) {
  EXPECT_THAT(RenderText(Report(1)),
              AllOf(HasSubstr("goodput, requests/s                1.00 with ttft:200\n"),
                    HasSubstr("refused                            UNAVAILABLE 1\n"),
                    HasSubstr("scheduled arrival")));
  EXPECT_THAT(RenderText(Report(3)), AllOf(HasSubstr("\n        6 "), HasSubstr("First of the")));
}

// Elements that need an end have one, in order; those whose end HTML lets out are not looked at.
void ExpectNested(const std::string& page) {
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != std::string::npos; at = page.find('<', at + 1)) {
    const size_t end = page.find('>', at);
    ASSERT_NE(end, std::string::npos);
    const bool closes = page[at + 1] == '/';
    const size_t name_at = at + (closes ? 2 : 1);
    const std::string name = page.substr(name_at, page.find_first_of(" \n/>", name_at) - name_at);
    for (const char* counted : {"html", "body", "main", "svg", "figure", "table", "dl", "title",
                                "circle", "text", "p", "div", "style", "tbody"}) {
      if (name != counted || page[end - 1] == '/') continue;
      if (!closes) {
        open.push_back(name);
      } else {
        ASSERT_FALSE(open.empty()) << "</" << name;
        EXPECT_EQ(open.back(), name) << "at byte " << at;
        open.pop_back();
      }
    }
  }
  EXPECT_TRUE(open.empty());
}

TEST(BenchReport, PageIsWellFormedAndNeedsNothingElse) {
  for (const int runs : {1, 2, 5}) {
    const std::string page = RenderHtml(Report(runs));
    ExpectNested(page);
    EXPECT_THAT(page, AllOf(HasSubstr("a&lt;b&gt;&amp;&quot;c&quot;"), Not(HasSubstr("<script")),
                            Not(HasSubstr("http://")), Not(HasSubstr("https://")),
                            Not(HasSubstr("nan")), HasSubstr("distribution of the time")));
    EXPECT_EQ(page.find("over offered load") != std::string::npos, runs > 1);
  }
  ExpectNested(RenderHtml(BenchReport()));
}

TEST(LinePlot, ShowsNothingWhereThereIsNone) {
  LinePlot plot;
  EXPECT_EQ(Draw(plot), "");
  plot.log_y = true;
  plot.lines = {{"a", 0, "", true, {{1, 0}, {2, kInfinite}, {3, 5}}}};
  EXPECT_EQ(Draw(plot), "") << "one point that can be shown";
  plot.lines[0].points.emplace_back(4, 5);
  EXPECT_THAT(Draw(plot), AllOf(HasSubstr("<path"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
}

}  // namespace
}  // namespace quantd::bench

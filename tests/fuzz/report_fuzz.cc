// What an evaluation has written: its report, as `quantd eval --from` and the planner read it, and
// its journal.
#include <filesystem>

#include "engine/eval/eval_journal.h"
#include "engine/eval/eval_json.h"
#include "engine/eval/report_html.h"
#include "engine/plan/measured_quality.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

void Show(const std::string& json) {
  const auto report = EvalReportFromJson(json, "fuzzed");
  if (!report.ok()) return;
  // What is written of it must say the same when it is read.
  const std::string written = ToJson(*report);
  const auto again = EvalReportFromJson(written, "written");
  QUANTD_CHECK(again.ok(), "{}\n{}", again.status().ToString(), written);
  QUANTD_CHECK(ToJson(*again) == written, "{}", written);
  QUANTD_CHECK(RenderReport(*report).find("<script") == std::string::npos, "a page with a script");
}

// A plan of which the seeds have measured something.
void AddQuality(const std::filesystem::path& folder) {
  ModelPlan plan;
  plan.spec.architecture = "LlamaForCausalLM";
  plan.parameters = 12587904;
  plan.profiles.resize(1);
  plan.profiles[0].name = plan.recommended = "nf4";
  plan.profiles[0].hash = "6769f2baa0dc1e74";
  QUANTD_CHECK(AddMeasuredQuality(folder, "", &plan).ok(), "a report that is found is no error");
  const auto& quality = plan.profiles[0].measured_quality;
  QUANTD_CHECK(!quality || (quality->retention > 0 && quality->retention < 10), "kept: {}",
               quality->retention);
}

void Resume(const std::string& path) {
  const EvalJournal::Identity identity = {{"text", "t"}};  // the seeds'
  WindowScore score;
  score.window = 7;
  score.tokens = 1;
  {
    const auto journal = EvalJournal::Open(path, identity);
    if (!journal.ok()) return;
    QUANTD_CHECK((*journal)->Add("h", score).ok(), "cannot add to it");
  }
  const auto again = EvalJournal::Open(path, identity);
  QUANTD_CHECK(again.ok(), "{}", again.status().ToString());
  QUANTD_CHECK((*again)->Of("h").windows.contains(7), "what was added is gone");
}

FUZZ_TARGET(report) {
  static const fuzz::Folder folder;
  const std::string text = fuzz::Text(bytes);
  Show(text);
  folder.Write(kQualityReportName, text);
  AddQuality(folder.path());
  folder.Write("journal", text);
  Resume((folder.path() / "journal").string());
}

}  // namespace
}  // namespace quantd

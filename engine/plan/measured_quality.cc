#include "engine/plan/measured_quality.h"

#include <nlohmann/json.hpp>

#include "engine/weights/files.h"
#include "engine/weights/fingerprint.h"
#include "engine/weights/json_check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using nlohmann::json;

constexpr int64_t kMaxReportBytes = int64_t{256} << 20;  // a large model has thousands of linears

std::string StringOf(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : "";
}

std::optional<double> NumberOf(const json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_number()) return std::nullopt;
  return it->get<double>();
}

std::optional<MeasuredQuality> QualityOf(const json& profile) {
  const auto retention = profile.find("retention");
  const auto kl = profile.find("kl");
  if (retention == profile.end() || !retention->is_object()) return std::nullopt;
  const auto value = NumberOf(*retention, "value");
  if (!value) return std::nullopt;
  // Far from what a quantized model keeps: not from quantd eval.
  if (!(*value > 0 && *value < 10)) return std::nullopt;
  MeasuredQuality quality;
  quality.retention = *value;
  quality.low = NumberOf(*retention, "low");
  quality.high = NumberOf(*retention, "high");
  if (kl != profile.end() && kl->is_object()) quality.kl_mean = NumberOf(*kl, "mean");
  return quality;
}

// Why the report is not of this model; empty: it is.
std::string Mismatch(const json& report, const std::filesystem::path& model,
                     const ModelPlan& plan) {
  if (StringOf(report, "architecture") != plan.spec.architecture) {
    return fmt::format("it is of a {}", StringOf(report, "architecture"));
  }
  const std::string reference = StringOf(report, "reference");
  if (reference != "bf16" && reference != "fp16" && reference != "fp32") {
    return fmt::format("it compares with {}, not with full precision",
                       reference.empty() ? "nothing" : reference);
  }
  const auto fingerprint = ModelFingerprint(model);
  if (!fingerprint.ok()) {  // planned from a config alone
    const auto parameters = NumberOf(report, "parameters").value_or(0);
    return parameters == static_cast<double>(plan.parameters)
               ? ""
               : fmt::format("it is of a model of {:.0f} parameters", parameters);
  }
  return StringOf(report, "fingerprint") == *fingerprint
             ? ""
             : fmt::format("it is of the checkpoint {}, and this one is {}",
                           StringOf(report, "fingerprint"), *fingerprint);
}

std::string KeptText(const ProfilePlan& p) {
  const MeasuredQuality& q = *p.measured_quality;
  return q.low && q.high ? fmt::format("{} keeps {:.2f}% ({:.2f} to {:.2f})", p.name,
                                       100 * q.retention, 100 * *q.low, 100 * *q.high)
                         : fmt::format("{} keeps {:.2f}%", p.name, 100 * q.retention);
}

// The report in `file`, when it is of this model.
absl::StatusOr<json> ReadReport(const std::filesystem::path& file,
                                const std::filesystem::path& model, const ModelPlan& plan) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(file, kMaxReportBytes));
  json content;
  if (CheckJson(text, "").ok()) content = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!content.is_object() || !content.contains("profiles") || !content["profiles"].is_array()) {
    return DataLoss("{}: not a report of quantd eval", file.string());
  }
  if (const std::string mismatch = Mismatch(content, model, plan); !mismatch.empty()) {
    return FailedPrecondition("{}: {}", file.string(), mismatch);
  }
  return content;
}

}  // namespace

absl::Status AddMeasuredQuality(const std::filesystem::path& model,
                                const std::filesystem::path& report, ModelPlan* plan) {
  const std::filesystem::path file = report.empty() ? model / kQualityReportName : report;
  std::error_code error;
  if (report.empty() && !std::filesystem::exists(file, error)) return absl::OkStatus();
  absl::StatusOr<json> read = ReadReport(file, model, *plan);
  if (!read.ok()) {
    if (!report.empty()) return read.status();
    plan->reasons.push_back(fmt::format("quality is not measured: {}", Message(read.status())));
    return absl::OkStatus();
  }
  const json& content = *read;
  for (const json& profile : content["profiles"]) {
    if (!profile.is_object()) continue;
    for (ProfilePlan& p : plan->profiles) {
      if (p.name == StringOf(profile, "name") && p.hash == StringOf(profile, "hash")) {
        p.measured_quality = QualityOf(profile);
      }
    }
  }
  for (const std::string& name : {plan->recommended, plan->runner_up}) {
    const ProfilePlan* p = plan->Find(name);
    if (p == nullptr || !p->measured_quality) continue;
    plan->reasons.push_back(fmt::format("{} of 16-bit quality, measured on {}", KeptText(*p),
                                        StringOf(content, "text")));
  }
  return absl::OkStatus();
}

}  // namespace quantd

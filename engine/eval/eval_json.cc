#include "engine/eval/eval_json.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "engine/eval/significant.h"
#include "engine/weights/json_check.h"
#include "engine/weights/json_dump.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using nlohmann::json;
using Ordered = nlohmann::ordered_json;  // a report is read from the top

// More digits than a measured share or speed is good for; a report stays small.
double Rounded(double value) { return RoundSignificant(value, 6); }

Ordered ToOrdered(const LinearError& e) {
  Ordered out = {{"module", e.module},
                 {"format", e.format},
                 {"isolated", Rounded(e.isolated)},
                 {"accumulated", Rounded(e.accumulated)}};
  if (e.outlier_share) out["outlier_share"] = Rounded(*e.outlier_share);
  return out;
}

// Without the linears, of which there are many: they come last.
Ordered ToOrdered(const ProfileFacts& f) {
  return {{"name", f.name},
          {"hash", f.hash},
          {"description", f.description},
          {"compute_dtype", f.compute_dtype},
          {"resident_bytes", f.resident_bytes},
          {"bits_per_weight", Rounded(f.bits_per_weight)},
          {"kv_bytes_per_token", f.kv_bytes_per_token},
          {"load_seconds", Rounded(f.load_seconds)},
          {"decode_tokens_per_second", Rounded(f.decode_tokens_per_second)},
          {"greedy_lengths", f.greedy_lengths}};
}

Ordered ToOrdered(const ProfileResult& p) {
  if (!p.refusal.empty()) return {{"name", p.facts.name}, {"refusal", p.refusal}};
  Ordered out = ToOrdered(p.facts);
  out["tokens"] = p.tokens;
  out["perplexity"] = Rounded(p.perplexity);
  out["bits_per_byte"] = Rounded(p.bits_per_byte);
  out["prefill_tokens_per_second"] = Rounded(p.prefill_tokens_per_second);
  if (p.compared) {
    const Interval& r = p.retention;
    out["retention"] = {{"value", Rounded(r.value)},
                        {"low", r.low ? Ordered(Rounded(*r.low)) : Ordered()},
                        {"high", r.high ? Ordered(Rounded(*r.high)) : Ordered()}};
    out["kl"] = {{"mean", Rounded(p.kl_mean)},
                 {"median", Rounded(p.kl_median)},
                 {"p99", Rounded(p.kl_p99)},
                 {"max", Rounded(p.kl_max)}};
    out["top1"] = Rounded(p.top1);
    out["top5"] = Rounded(p.top5);
  }
  return out;
}

// Reads members of an object; the first that is not as it should be is the fault.
class Reader {
 public:
  Reader(const json& object, const std::string& source) : object_(object), source_(source) {
    if (!object.is_object()) Fail("not an object");
  }

  template <typename T>
  void Read(const char* key, T* out) {
    if (!status_.ok()) return;
    const auto it = object_.find(key);
    if (it == object_.end() || !IsA<T>(*it)) return Fail(key);
    *out = it->get<T>();
  }
  template <typename T>
  void Read(const char* key, std::optional<T>* out) {
    if (!status_.ok()) return;
    const auto it = object_.find(key);
    if (it == object_.end() || it->is_null()) return;
    if (!IsA<T>(*it)) return Fail(key);
    *out = it->get<T>();
  }
  template <typename T>
  void ReadList(const char* key, std::vector<T>* out) {
    if (!status_.ok()) return;
    const auto it = object_.find(key);
    if (it == object_.end() || !it->is_array()) return Fail(key);
    for (const json& value : *it) {
      if (!IsA<T>(value)) return Fail(key);
      out->push_back(value.get<T>());
    }
  }
  /// A fault unless it holds.
  void Require(bool holds, const char* key) {
    if (!holds) Fail(key);
  }
  bool Has(const char* key) const { return object_.is_object() && object_.contains(key); }
  /// The member, for another Reader; null where there is none.
  const json& At(const char* key) const {
    static const json kNull;
    return Has(key) ? object_.find(key).value() : kNull;
  }
  const absl::Status& status() const { return status_; }

 private:
  template <typename T>
  static bool IsA(const json& value) {
    if constexpr (std::is_same_v<T, std::string>) return value.is_string();
    if constexpr (std::is_integral_v<T>) {
      constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
      return value.is_number_integer() &&
             !(value.is_number_unsigned() && value.get<uint64_t>() > kMost);
    }
    return value.is_number();
  }
  void Fail(const char* what) {
    if (status_.ok())
      status_ = DataLoss("{}: {}: missing, or not what it should be", source_, what);
  }

  const json& object_;
  const std::string& source_;
  absl::Status status_;
};

absl::StatusOr<LinearError> ReadLinear(const json& object, const std::string& source) {
  Reader reader(object, source);
  LinearError e;
  reader.Read("module", &e.module);
  reader.Read("format", &e.format);
  reader.Read("isolated", &e.isolated);
  reader.Read("accumulated", &e.accumulated);
  reader.Read("outlier_share", &e.outlier_share);
  RETURN_IF_ERROR(reader.status());
  return e;
}

absl::StatusOr<ProfileFacts> ReadFacts(const json& object, const std::string& source) {
  Reader reader(object, source);
  ProfileFacts f;
  reader.Read("name", &f.name);
  reader.Read("hash", &f.hash);
  reader.Read("description", &f.description);
  reader.Read("compute_dtype", &f.compute_dtype);
  reader.Read("resident_bytes", &f.resident_bytes);
  reader.Read("bits_per_weight", &f.bits_per_weight);
  reader.Read("kv_bytes_per_token", &f.kv_bytes_per_token);
  reader.Read("load_seconds", &f.load_seconds);
  reader.Read("decode_tokens_per_second", &f.decode_tokens_per_second);
  reader.ReadList("greedy_lengths", &f.greedy_lengths);
  reader.Require(f.resident_bytes > 0, "resident_bytes");
  RETURN_IF_ERROR(reader.status());
  for (const json& linear : reader.At("linears")) {
    ASSIGN_OR_RETURN(f.linears.emplace_back(), ReadLinear(linear, source));
  }
  return f;
}

absl::StatusOr<ProfileResult> ReadProfile(const json& object, const std::string& source) {
  ProfileResult p;
  Reader reader(object, source);
  if (reader.Has("refusal")) {
    reader.Read("name", &p.facts.name);
    reader.Read("refusal", &p.refusal);
    RETURN_IF_ERROR(reader.status());
    return p;
  }
  ASSIGN_OR_RETURN(p.facts, ReadFacts(object, source));
  reader.Read("tokens", &p.tokens);
  reader.Read("perplexity", &p.perplexity);
  reader.Read("bits_per_byte", &p.bits_per_byte);
  reader.Read("prefill_tokens_per_second", &p.prefill_tokens_per_second);
  reader.Require(p.perplexity > 0, "perplexity");
  p.compared = reader.Has("retention");
  if (p.compared) {
    reader.Read("top1", &p.top1);
    reader.Read("top5", &p.top5);
    Reader retention(reader.At("retention"), source);
    retention.Read("value", &p.retention.value);
    retention.Read("low", &p.retention.low);
    retention.Read("high", &p.retention.high);
    retention.Require(p.retention.value > 0, "retention.value");
    retention.Require(p.retention.low.has_value() == p.retention.high.has_value(),
                      "retention.low and retention.high");
    RETURN_IF_ERROR(retention.status());
    Reader kl(reader.At("kl"), source);
    kl.Read("mean", &p.kl_mean);
    kl.Read("median", &p.kl_median);
    kl.Read("p99", &p.kl_p99);
    kl.Read("max", &p.kl_max);
    // Below the least float: not from here, and without a place on a logarithmic scale.
    constexpr double kLeast = std::numeric_limits<float>::denorm_min();
    kl.Require(p.kl_mean == 0 || p.kl_mean >= kLeast, "kl.mean");
    const auto is_share = [](double v) { return v >= 0 && v <= 1; };
    reader.Require(is_share(p.top1) && is_share(p.top5), "top1 and top5");
    RETURN_IF_ERROR(kl.status());
  }
  RETURN_IF_ERROR(reader.status());
  return p;
}

absl::StatusOr<json> Parse(const std::string& text, const std::string& source) {
  RETURN_IF_ERROR(CheckJson(text, source));
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace

std::string ToJson(const WindowScore& s) {
  Ordered out = {{"window", s.window},
                 {"tokens", s.tokens},
                 {"bytes", s.bytes},
                 {"nll", s.nll},
                 {"seconds", s.seconds},
                 {"rows", s.rows},
                 {"reference_nll", s.reference_nll},
                 {"top1", s.top1},
                 {"top5", s.top5}};
  Ordered kl = Ordered::array();
  // As the decimal they were rounded to: a double of the float would be written with 17 digits.
  for (const float value : s.kl) kl.push_back(std::stod(fmt::format("{}", value)));
  out["kl"] = std::move(kl);
  return DumpJson(out);
}

std::string ToJson(const ProfileFacts& facts) {
  Ordered out = ToOrdered(facts);
  Ordered& linears = out["linears"] = Ordered::array();
  for (const LinearError& e : facts.linears) linears.push_back(ToOrdered(e));
  return DumpJson(out);
}

std::string ToJson(const EvalReport& r) {
  Ordered out = {
      {"quantd", r.version},
      {"date", r.date},
      {"model", r.model},
      {"fingerprint", r.fingerprint},
      {"architecture", r.architecture},
      {"parameters", r.parameters},
      {"backend", r.backend},
      {"device", r.device},
      {"reference", r.reference.empty() ? Ordered() : Ordered(r.reference)},
      {"reference_model", r.reference_model.empty() ? Ordered() : Ordered(r.reference_model)},
      {"text", r.text},
      {"text_hash", r.text_hash},
      {"documents", r.documents},
      {"windows", r.windows},
      {"tokens", r.tokens},
      {"bytes", r.bytes},
      {"context", r.context},
      {"stride", r.stride},
      {"greedy_tokens", r.greedy_tokens}};
  std::string text = DumpJson(out, 1);
  text.resize(text.size() - 2);  // "\n}"
  text += ",\n \"profiles\": [";
  for (size_t i = 0; i < r.profiles.size(); ++i) {
    std::string entry = DumpJson(ToOrdered(r.profiles[i]));
    entry.pop_back();
    text += (i == 0 ? "\n  " : ",\n  ") + entry + ", \"linears\": [";
    const std::vector<LinearError>& linears = r.profiles[i].facts.linears;
    for (size_t j = 0; j < linears.size(); ++j) {
      text += (j == 0 ? "\n   " : ",\n   ") + DumpJson(ToOrdered(linears[j]));
    }
    text += "]}";
  }
  return text + "]\n}\n";
}

absl::StatusOr<WindowScore> WindowScoreFromJson(const std::string& text,
                                                const std::string& source) {
  ASSIGN_OR_RETURN(const json object, Parse(text, source));
  Reader reader(object, source);
  WindowScore s;
  reader.Read("window", &s.window);
  reader.Read("tokens", &s.tokens);
  reader.Read("bytes", &s.bytes);
  reader.Read("nll", &s.nll);
  reader.Read("seconds", &s.seconds);
  reader.Read("rows", &s.rows);
  reader.Read("reference_nll", &s.reference_nll);
  reader.Read("top1", &s.top1);
  reader.Read("top5", &s.top5);
  reader.ReadList("kl", &s.kl);
  reader.Require(s.window >= 0 && s.tokens > 0, "window and tokens");
  reader.Require(s.kl.empty() || static_cast<int64_t>(s.kl.size()) == s.tokens, "kl");
  RETURN_IF_ERROR(reader.status());
  return s;
}

absl::StatusOr<ProfileFacts> ProfileFactsFromJson(const std::string& text,
                                                  const std::string& source) {
  ASSIGN_OR_RETURN(const json object, Parse(text, source));
  return ReadFacts(object, source);
}

absl::StatusOr<EvalReport> EvalReportFromJson(const std::string& text, const std::string& source) {
  ASSIGN_OR_RETURN(const json object, Parse(text, source));
  Reader reader(object, source);
  EvalReport r;
  std::optional<std::string> reference, reference_model;
  reader.Read("quantd", &r.version);
  reader.Read("date", &r.date);
  reader.Read("model", &r.model);
  reader.Read("fingerprint", &r.fingerprint);
  reader.Read("architecture", &r.architecture);
  reader.Read("parameters", &r.parameters);
  reader.Read("backend", &r.backend);
  reader.Read("device", &r.device);
  reader.Read("reference", &reference);
  reader.Read("reference_model", &reference_model);
  reader.Read("text", &r.text);
  reader.Read("text_hash", &r.text_hash);
  reader.Read("documents", &r.documents);
  reader.Read("windows", &r.windows);
  reader.Read("tokens", &r.tokens);
  reader.Read("bytes", &r.bytes);
  reader.Read("context", &r.context);
  reader.Read("stride", &r.stride);
  reader.Read("greedy_tokens", &r.greedy_tokens);
  RETURN_IF_ERROR(reader.status());
  r.reference = reference.value_or("");
  r.reference_model = reference_model.value_or("");
  for (const json& profile : reader.At("profiles")) {
    ASSIGN_OR_RETURN(r.profiles.emplace_back(), ReadProfile(profile, source));
  }
  if (r.profiles.empty()) return DataLoss("{}: profiles: missing, or none", source);
  return r;
}

}  // namespace quantd

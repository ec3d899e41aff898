#include "engine/inspect.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "engine/models/architecture.h"
#include "engine/weights/quantization_options.h"
#include "engine/weights/weight_check.h"

namespace quantd {
namespace {

/// A block whose scale is zero is a block of zeros: more of them than this share is worth a look.
constexpr double kManyZeroScales = 0.01;
/// A module's largest weight over the median of the model's modules; so with norms and with biases.
constexpr float kOutlierRatio = 100.0f;

std::string LastName(const std::string& module) {
  const size_t dot = module.rfind('.');
  return dot == std::string::npos ? module : module.substr(dot + 1);
}

std::string ActivationText(const ActivationQuant& a) {
  using Kind = ActivationQuant::Kind;
  switch (a.kind) {
    case Kind::kNone: return "";
    case Kind::kInt8Outlier: return fmt::format("int8 per token, outliers from {}", a.threshold);
    case Kind::kInt8Token: return "int8 per token";
    case Kind::kInt8TokenAsym: return "int8 per token, asymmetric";
    case Kind::kInt8Tensor: return "int8, static";
    case Kind::kFp8Token: return "fp8 per token";
    case Kind::kFp8Group: return fmt::format("fp8 per {} of a token", a.group);
    case Kind::kFp8Tensor: return "fp8, static";
  }
  return "?";
}

class Inspector {
 public:
  Inspector(const Checkpoint& checkpoint, const ExpectedWeights& expected, const WeightsPlan& plan,
            ModelReport& report)
      : checkpoint_(checkpoint), expected_(expected), plan_(plan), report_(report) {}

  void Describe() {
    Count(plan_.embedding, report_.bytes.embedding);
    if (plan_.head) Count(*plan_.head, report_.bytes.head);
    for (const auto& group : plan_.groups) {
      for (const ModulePlan& m : group) Count(m, report_.bytes.linears);
    }
    report_.bytes.total = checkpoint_.total_bytes();
    for (const auto& [group, kinds] : kinds_) {
      report_.groups[group].kinds.assign(kinds.begin(), kinds.end());
    }
    if (!AnyQuantized()) return;
    for (const auto& group : plan_.groups) {
      for (const ModulePlan& m : group) {
        if (IsPlain(m.format.codec)) report_.skipped.push_back(m.shape.module);
      }
    }
    if (plan_.head && IsPlain(plan_.head->format.codec)) {
      report_.skipped.push_back(plan_.head->shape.module);
    }
  }

  void LookAtValues() {
    Look(plan_.embedding);
    if (plan_.head) Look(*plan_.head);
    for (const auto& group : plan_.groups) {
      for (const ModulePlan& m : group) Look(m);
    }
    for (const ExpectedVector& v : expected_.vectors) LookAtVector(v.tensor, v.offset, norms_);
    Compare(modules_, "weight", "modules");
    Compare(norms_, "value", "norms");
    Compare(biases_, "value", "biases");
  }

 private:
  using Largest = std::map<std::string, float>;  // magnitude, by module or tensor

  // Points at those far above the median of their kind, and at those without any value.
  void Compare(const Largest& largest, std::string_view what, std::string_view of) {
    if (largest.empty()) return;
    std::vector<float> sorted;
    for (const auto& [name, magnitude] : largest) sorted.push_back(magnitude);
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    const float median = *middle;
    for (const auto& [name, magnitude] : largest) {
      if (magnitude == 0.0f) {
        // Of biases there is nothing to say: AutoGPTQ wrote zeros where models have none.
        if (&largest != &biases_) {
          report_.suspicious.push_back(fmt::format("{}: every {} is zero", name, what));
        }
      } else if (median > 0.0f && magnitude > kOutlierRatio * median) {
        report_.suspicious.push_back(
            fmt::format("{}: a {} of magnitude {:.3g}, {:.0f} times the median of {}", name, what,
                        magnitude, magnitude / median, of));
      }
    }
  }

  bool AnyQuantized() const {
    return std::any_of(report_.groups.begin(), report_.groups.end(),
                       [](const auto& g) { return g.method != "none"; });
  }

  void Count(const ModulePlan& m, int64_t& component) {
    const std::string format = m.format.ToString(), activation = ActivationText(m.activation);
    size_t at = 0;
    while (at < report_.groups.size() &&
           (report_.groups[at].method != m.label || report_.groups[at].format != format ||
            report_.groups[at].activation != activation)) {
      ++at;
    }
    if (at == report_.groups.size()) {
      report_.groups.push_back({m.label, format, activation, {}, 0, 0, 0, 0});
    }
    ModelReport::Group& group = report_.groups[at];
    int64_t bias = 0;
    if (!m.bias.empty()) {
      if (const StoredTensor* t = checkpoint_.Find(m.bias)) {
        bias = static_cast<int64_t>(t->data.size());
      }
      report_.parameters += m.shape.n;
    }
    group.modules += 1;
    group.parameters += m.shape.n * m.shape.k;
    group.file_bytes += m.source_bytes - bias;
    group.resident_bytes += m.format.StoredBytes(m.shape.n, m.shape.k);
    kinds_[at].insert(LastName(m.shape.module));
    component += m.source_bytes - bias;
    report_.bytes.norms += bias;
    report_.parameters += m.shape.n * m.shape.k;
  }

  void Look(const ModulePlan& m) {
    if (!m.bias.empty()) LookAtVector(m.bias, 0.0f, biases_);
    absl::StatusOr<QuantizedMatrix> matrix = Matrix(m);
    for (const std::string& name : m.sources) {
      if (const StoredTensor* t = checkpoint_.Find(name)) checkpoint_.DropPages(*t);
    }
    if (!matrix.ok()) {
      report_.suspicious.push_back(fmt::format("{}: {}", m.shape.module, Message(matrix.status())));
      return;
    }
    const int64_t zeros = std::count(matrix->scales.begin(), matrix->scales.end(), 0.0f);
    if (static_cast<double>(zeros) > kManyZeroScales * static_cast<double>(matrix->scales.size())) {
      report_.suspicious.push_back(fmt::format("{}: {} of {} scales are zero", m.shape.module,
                                               zeros, matrix->scales.size()));
    }
    LookAt(matrix->DequantizeAll(), m.shape.module, "weight", modules_);
  }

  // At a vector stored less `offset`, as a model uses it.
  void LookAtVector(const std::string& tensor, float offset, Largest& largest) {
    const StoredTensor& t = *checkpoint_.Find(tensor);
    std::vector<float> values = PlainMatrixOf(t, 1, t.shape[0]).DequantizeAll();
    for (float& v : values) v += offset;
    LookAt(values, tensor, "value", largest);
  }

  void LookAt(const std::vector<float>& values, const std::string& name, std::string_view what,
              Largest& largest) {
    float most = 0.0f;
    int64_t not_finite = 0;
    for (const float v : values) {
      if (!std::isfinite(v)) ++not_finite;
      most = std::max(most, std::fabs(v));
    }
    if (not_finite > 0) {
      report_.suspicious.push_back(
          fmt::format("{}: {} {}s are not finite", name, not_finite, what));
    }
    largest[name] = most;
  }

  absl::StatusOr<QuantizedMatrix> Matrix(const ModulePlan& m) const {
    if (m.import != nullptr) return m.import->Load(checkpoint_, m.shape, m.options);
    return PlainMatrixOf(*checkpoint_.Find(m.tensor), m.shape.n, m.shape.k);
  }

  // Plain floats as they are stored.
  static QuantizedMatrix PlainMatrixOf(const StoredTensor& t, int64_t n, int64_t k) {
    QuantizedMatrix matrix;
    matrix.format = QuantFormat::Plain(*ToDType(t.dtype));
    matrix.n = n;
    matrix.k = k;
    matrix.codes.resize(t.data.size());
    std::copy(t.data.begin(), t.data.end(), reinterpret_cast<std::byte*>(matrix.codes.data()));
    return matrix;
  }

  const Checkpoint& checkpoint_;
  const ExpectedWeights& expected_;
  const WeightsPlan& plan_;
  ModelReport& report_;
  std::map<size_t, std::set<std::string>> kinds_;  // of report_.groups, by index
  Largest modules_, norms_, biases_;
};

}  // namespace

absl::StatusOr<ModelReport> InspectModel(const std::filesystem::path& dir, bool values) {
  ModelReport report;
  auto spec = ReadDecoderSpec(dir);
  if (absl::IsNotFound(spec.status())) return spec.status();
  const auto refuse = [&report](const absl::Status& status) {
    if (report.refusal.empty()) report.refusal = Message(status);
  };
  report.quantization = "none";
  auto config = ReadQuantizationConfig(dir);
  if (!config.ok()) {
    refuse(config.status());
    report.quantization = "not readable";
  } else if (config->has_value()) {
    report.quantization = Describe(**config);
    report.trainable_with_peft = MethodOf(**config).trainable_with_peft(**config);
  } else {
    report.trainable_with_peft = true;
  }
  if (!spec.ok()) refuse(spec.status());
  auto checkpoint = Checkpoint::Open(dir);
  if (!checkpoint.ok()) refuse(checkpoint.status());
  if (checkpoint.ok()) report.bytes.total = (*checkpoint)->total_bytes();
  if (spec.ok()) report.spec = *spec;
  if (!report.refusal.empty()) return report;

  WeightLoaderOptions options;
  options.prequantized = *config;
  options.compute_dtype = spec->dtype;
  const ExpectedWeights expected =
      FindArchitecture(spec->architecture, spec->model_type)->weights(*spec);
  auto plan = PlanWeights(**checkpoint, expected, options);
  if (!plan.ok()) {
    refuse(plan.status());
    return report;
  }
  for (const ExpectedVector& v : expected.vectors) {
    report.parameters += v.size;
    report.bytes.norms += static_cast<int64_t>((*checkpoint)->Find(v.tensor)->data.size());
  }
  Inspector inspector(**checkpoint, expected, *plan, report);
  inspector.Describe();
  if (values) inspector.LookAtValues();
  return report;
}

}  // namespace quantd

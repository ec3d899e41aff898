#include "engine/eval/linear_errors.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/weights/loader.h"
#include "kernels/quant/read_row.h"
#include "kernels/status.h"

namespace quantd {
namespace {

LinearTap::Rows Read(Backend& backend, const TensorView& view, int64_t max_rows) {
  LinearTap::Rows out;
  out.dtype = view.dtype;
  out.rows = std::min(view.rows, max_rows);
  out.cols = view.cols;
  // From the first element to the last: what lies between the rows comes along.
  const int64_t elements = (out.rows - 1) * view.stride + view.cols;
  std::vector<std::byte> bytes(static_cast<size_t>(elements) * SizeOf(view.dtype));
  backend.Download(view.data, bytes.size(), bytes.data());
  TensorView host = view;
  host.data = bytes.data();
  out.values.resize(static_cast<size_t>(out.rows * out.cols));
  for (int64_t r = 0; r < out.rows; ++r) {
    ReadRow(host, r, 0,
            std::span(out.values)
                .subspan(static_cast<size_t>(r * out.cols), static_cast<size_t>(out.cols)));
  }
  return out;
}

// The elements in `dtype`, what is beyond f16 at its largest.
std::vector<std::byte> Convert(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> out(values.size() * SizeOf(dtype));
  const auto convert = [&](auto* to, float most) {
    for (size_t i = 0; i < values.size(); ++i) {
      to[i] = std::remove_pointer_t<decltype(to)>(std::clamp(values[i], -most, most));
    }
  };
  constexpr float kAny = std::numeric_limits<float>::infinity();
  switch (dtype) {
    case DType::kF16: convert(reinterpret_cast<F16*>(out.data()), 65504.0f); break;
    case DType::kBF16: convert(reinterpret_cast<BF16*>(out.data()), kAny); break;
    case DType::kF32: convert(reinterpret_cast<float*>(out.data()), kAny); break;
    default: QUANTD_CHECK(false, "activations in {}", ToString(dtype));
  }
  return out;
}

// The sum of squares of what differs; `first_col`: of the reference's columns in `other`.
double Differences(const LinearTap::Rows& reference, const LinearTap::Rows& other,
                   int64_t first_col) {
  double sum = 0.0;
  for (int64_t r = 0; r < std::min(reference.rows, other.rows); ++r) {
    const float* want = &reference.values[static_cast<size_t>(r * reference.cols)];
    const float* got = &other.values[static_cast<size_t>(r * other.cols + first_col)];
    for (int64_t c = 0; c < reference.cols; ++c) {
      const double difference = static_cast<double>(got[c]) - static_cast<double>(want[c]);
      sum += difference * difference;
    }
  }
  return sum;
}

double Squares(const std::vector<float>& values) {
  double sum = 0.0;
  for (const float v : values) sum += static_cast<double>(v) * static_cast<double>(v);
  return sum;
}

double Ratio(double squares, double norm) { return norm > 0 ? std::sqrt(squares / norm) : 0.0; }

const LinearTap::Rows* Find(const std::map<std::string, LinearTap::Rows>& rows,
                            const std::string& module) {
  const auto it = rows.find(module);
  return it == rows.end() ? nullptr : &it->second;
}

}  // namespace

LinearTap::LinearTap(Backend& backend, int64_t max_rows)
    : backend_(backend),
      max_rows_(max_rows),
      observer_([this](const PackedWeight& weight, const TensorView& x, const TensorView& y) {
        const Rows input = Read(backend_, x, max_rows_);
        for (const RowSegment& segment : weight.segments()) {
          inputs_[segment.module] = input;
          outputs_[segment.module] =
              Read(backend_, y.Cols(segment.first_row, segment.rows), max_rows_);
        }
      }) {}

const LinearTap::Rows* LinearTap::input(const std::string& module) const {
  return Find(inputs_, module);
}
const LinearTap::Rows* LinearTap::output(const std::string& module) const {
  return Find(outputs_, module);
}

absl::StatusOr<LinearErrors> LinearErrors::Create(Backend& backend, const Model& model,
                                                  int64_t max_rows) {
  LinearErrors errors(backend, model);
  int64_t widest_k = 1, widest_n = 1;
  for (const LoadedLinear* linear : model.linears()) {
    widest_k = std::max(widest_k, linear->weight->k());
    widest_n = std::max(widest_n, linear->weight->n());
    for (const RowSegment& segment : linear->weight->segments()) {
      Sums& sums = errors.sums_.emplace_back();
      sums.error.module = segment.module;
      sums.error.format = linear->weight->format().ToString();
      sums.has_outliers = linear->activation.kind == ActivationQuant::Kind::kInt8Outlier &&
                          linear->activation.threshold > 0.0f;
    }
  }
  const auto rows = [&](int64_t cols) {
    return backend.Allocate(static_cast<size_t>(max_rows * cols) * sizeof(float),
                            MemoryComponent::kWorkspace);
  };
  ASSIGN_OR_RETURN(errors.input_, rows(widest_k));
  ASSIGN_OR_RETURN(errors.output_, rows(widest_n));
  return errors;
}

absl::Status LinearErrors::Add(const LinearTap& reference, const LinearTap& profile) {
  size_t next = 0;
  for (const LoadedLinear* linear : model_->linears()) {
    const PackedWeight& weight = *linear->weight;
    const size_t first = next;
    next += weight.segments().size();
    const std::string& name = weight.segments().front().module;
    const LinearTap::Rows* input = reference.input(name);
    const LinearTap::Rows* heard = profile.output(name);
    // Where one of the two has a head of its own and the other a tied one, there is no counterpart.
    if (input == nullptr || heard == nullptr || input->cols != weight.k()) continue;
    const DType dtype = model_->compute_dtype();
    const std::vector<std::byte> bytes = Convert(input->values, dtype);
    backend_->Upload(bytes.data(), bytes.size(), input_.data());
    const TensorView x(dtype, input_.data(), input->rows, weight.k());
    const TensorView y(heard->dtype, output_.data(), input->rows, weight.n());
    backend_->Linear(weight, linear->activation, x, linear->bias.as<float>(), y);
    RETURN_IF_ERROR(backend_->Synchronize());
    const LinearTap::Rows output = Read(*backend_, y, input->rows);
    for (size_t i = 0; i < weight.segments().size(); ++i) {
      const RowSegment& segment = weight.segments()[i];
      Sums& sums = sums_[first + i];
      const LinearTap::Rows* want = reference.output(segment.module);
      const LinearTap::Rows* running = profile.output(segment.module);
      if (want == nullptr || running == nullptr || want->cols != segment.rows) continue;
      sums.isolated += Differences(*want, output, segment.first_row);
      sums.accumulated += Differences(*want, *running, 0);
      sums.norm += Squares(want->values);
      sums.inputs += static_cast<int64_t>(input->values.size());
      if (!sums.has_outliers) continue;
      const float threshold = linear->activation.threshold;
      sums.outliers += std::count_if(input->values.begin(), input->values.end(),
                                     [&](float v) { return std::fabs(v) >= threshold; });
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LinearError>> LinearErrors::Result() const {
  std::vector<LinearError> out;
  for (const Sums& sums : sums_) {
    if (sums.inputs == 0) continue;
    LinearError& error = out.emplace_back(sums.error);
    error.isolated = Ratio(sums.isolated, sums.norm);
    error.accumulated = Ratio(sums.accumulated, sums.norm);
    if (!std::isfinite(error.isolated) || !std::isfinite(error.accumulated)) {
      return DataLoss("{}: its outputs are not finite", error.module);
    }
    if (sums.has_outliers) {
      error.outlier_share = static_cast<double>(sums.outliers) / static_cast<double>(sums.inputs);
    }
  }
  return out;
}

}  // namespace quantd

// LinearErrors: what quantization does to the output of every linear of a model, beside the same
// model under a reference profile.
//
// Both models run the same rows with a LinearTap listening. Then every weight of the profile is
// given what the reference's had for input: the difference of the outputs is the module's own error
// (isolated), the difference of what the taps heard is the error of everything up to it
// (accumulated). Engine thread's work: belongs to one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/eval/eval_result.h"
#include "engine/models/model.h"

namespace quantd {

/// Listens to the Linears of one Forward; keeps the first rows of inputs and outputs by module.
class LinearTap {
 public:
  struct Rows {
    DType dtype = DType::kF32;  // of the view they were read from
    int64_t rows = 0;
    int64_t cols = 0;
    std::vector<float> values;  // [rows, cols]
  };

  LinearTap(Backend& backend, int64_t max_rows);
  LinearTap(const LinearTap&) = delete;
  LinearTap& operator=(const LinearTap&) = delete;

  const LinearObserver* observer() const { return &observer_; }
  /// nullptr for a module that did not run.
  const Rows* input(const std::string& module) const;
  const Rows* output(const std::string& module) const;

 private:
  Backend& backend_;
  const int64_t max_rows_;
  LinearObserver observer_;
  std::map<std::string, Rows> inputs_, outputs_;
};

class LinearErrors {
 public:
  /// `backend` and `model`: of the profile; must outlive it. `max_rows`: as the taps'.
  /// RESOURCE_EXHAUSTED when the rows of the widest module do not fit.
  static absl::StatusOr<LinearErrors> Create(Backend& backend, const Model& model,
                                             int64_t max_rows);

  /// One more sample: what the taps heard of the same rows. Errors of Backend::Synchronize.
  absl::Status Add(const LinearTap& reference, const LinearTap& profile);

  /// Of every module that both models have, in the order of Model::linears. DATA_LOSS naming the
  /// first whose outputs are not finite.
  absl::StatusOr<std::vector<LinearError>> Result() const;

 private:
  struct Sums {
    LinearError error;
    double isolated = 0.0, accumulated = 0.0;  // of squared differences
    double norm = 0.0;                         // of the reference's squares
    int64_t outliers = 0, inputs = 0;
    bool has_outliers = false;
  };

  LinearErrors(Backend& backend, const Model& model) : backend_(&backend), model_(&model) {}

  Backend* backend_;
  const Model* model_;
  Buffer input_;            // [max_rows, widest k], f32 or narrower
  Buffer output_;           // [max_rows, widest n]
  std::vector<Sums> sums_;  // a module each
};

}  // namespace quantd

// Method: one way in which the numbers of a weight are chosen, or a checkpoint stores them.
//
// The loader asks the registry; nothing else in quantd knows methods. To add one (GPTQ, AWQ, HQQ,
// ...): write methods/<name>.cc with an ImportMethod, add its line to registry.cc, and a fixture to
// the tests. Implementations have no state; all functions are thread-safe.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/profile.h"
#include "engine/weights/safetensors.h"
#include "kernels/quant/format.h"

namespace quantd {

/// A linear's weight as the model expects it.
struct WeightShape {
  std::string module;  // "model.layers.0.mlp.up_proj"
  int64_t n = 0;       // outputs
  int64_t k = 0;       // inputs
};

/// Reads the weights that another program has quantized.
class ImportMethod {
 public:
  virtual ~ImportMethod() = default;

  virtual QuantMethod method() const = 0;
  /// True when the checkpoint's tensors of `module` are stored this way. Decided from tensors, not
  /// from config.json, whose skip lists do not say which modules were converted.
  virtual bool Detect(const Checkpoint& checkpoint, const std::string& module) const = 0;

  struct Source {
    QuantFormat format;
    std::vector<std::string> tensors;  // every tensor that belongs to the weight
    MethodOptions stored;              // what the tensors say: to be compared with config.json
  };
  /// Checks names, dtypes, shapes and small metadata; allocates nothing proportional to the weight.
  /// DATA_LOSS naming the tensor, UNIMPLEMENTED for variants that are not read.
  virtual absl::StatusOr<Source> Check(const Checkpoint& checkpoint,
                                       const WeightShape& shape) const = 0;
  /// The canonical matrix. After an OK Check; errors are values that no writer makes (a scale that
  /// is negative or not finite).
  virtual absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& checkpoint,
                                               const WeightShape& shape) const = 0;
};

/// Those that can be imported, in the order in which they are asked.
std::span<const ImportMethod* const> ImportMethods();

/// Chooses the numbers itself: floats to a QuantizedMatrix on load.
class QuantizeMethod {
 public:
  virtual ~QuantizeMethod() = default;

  virtual QuantMethod method() const = 0;
  /// `plain`: the dtype of weights that are not quantized.
  virtual QuantFormat FormatOf(const MethodOptions& options, DType plain) const = 0;
  /// `w` [n, k] is f32, f16 or bf16 and finite. INVALID_ARGUMENT when a value does not fit the
  /// format.
  virtual absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w,
                                                   const MethodOptions& options,
                                                   DType plain) const = 0;
  /// OK when Backend::QuantizeRows makes of `w` what Quantize makes of it, so that a device may do
  /// it; INVALID_ARGUMENT as Quantize. UNIMPLEMENTED: the numbers are chosen by more than the
  /// format.
  virtual absl::Status CheckQuantizeRows(const TensorView& w, const MethodOptions& options) const {
    (void)w, (void)options;
    return absl::UnimplementedError("this method chooses numbers on the host");
  }
};

/// Never fails: there is one for every QuantMethod.
const QuantizeMethod& QuantizeMethodFor(QuantMethod method);

/// How a Linear over weights of `options` treats its input.
ActivationQuant ActivationOf(const MethodOptions& options, ActivationQuant::OutlierScope scope);

// The entries of the registry, one file each.
const ImportMethod& BitsAndBytes4Import();
const ImportMethod& BitsAndBytes8Import();
const QuantizeMethod& PlainMethod();
const QuantizeMethod& BitsAndBytes4Method();
const QuantizeMethod& BitsAndBytes8Method();

}  // namespace quantd

// Method: one way in which the numbers of a weight are chosen, or a checkpoint stores them.
//
// The loader asks the registry; nothing else in quantd knows methods. To add one: write
// methods/<name>.cc with a Method, name it in registry.cc, add a profile to configs/profiles when
// it quantizes on load, and a fixture to the tests. Implementations have no state; all functions
// are thread-safe.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/method_options.h"
#include "engine/weights/option_map.h"
#include "engine/weights/safetensors.h"
#include "kernels/quant/format.h"

namespace quantd {

enum class OptionSource {
  kProfile,     // what a user asks for: every key must be known and possible
  kCheckpoint,  // what another program wrote: keys that do not change how its tensors read are
                // ignored
};

/// A linear's weight as the model expects it.
struct WeightShape {
  std::string module;  // "model.layers.0.mlp.up_proj"
  int64_t n = 0;       // outputs
  int64_t k = 0;       // inputs
};

/// How a stored weight is to be read.
struct WeightSource {
  QuantFormat format;
  std::string label;                 // of reports: "bitsandbytes_4bit"
  std::vector<std::string> tensors;  // every tensor that belongs to the weight
  ActivationQuant activation;        // how its Linear treats the input
  std::vector<int32_t> columns;      // QuantizedMatrix::columns, when reordered
};

class Method {
 public:
  virtual ~Method() = default;

  /// The quant_method that config.json and profiles name.
  virtual std::string_view name() const = 0;

  /// Reads the keys of a `quantization:` mapping or a quantization_config; absent keys take the
  /// library's own defaults. Faults go to the reader's list as "<where>.<key>: ...".
  virtual MethodOptions Read(const OptionReader& reader, OptionSource source) const = 0;
  /// The key of the skip list, for printing options.
  virtual std::string_view skip_key() const { return "modules_to_not_convert"; }
  /// The key of MethodOptions::compute_dtype; empty where the mapping has none.
  virtual std::string_view compute_dtype_key(const MethodOptions& options) const {
    (void)options;
    return "";
  }

  /// True when transformers lets PEFT train adapters over such weights: is_trainable of its
  /// quantizer, version 5.23.
  virtual bool trainable_with_peft(const MethodOptions& options) const {
    (void)options;
    return false;
  }

  // ---- checkpoints that another program has quantized

  /// True when the checkpoint's tensors of the module are stored this way. Decided from tensors,
  /// not from config.json, whose skip lists do not say which modules were converted.
  virtual bool Detect(const Checkpoint& checkpoint, const WeightShape& shape) const {
    (void)checkpoint, (void)shape;
    return false;
  }
  /// After Detect: checks names, dtypes, shapes and small metadata against each other and against
  /// `config` (of this method); reads no more than scales, zero points and column orders. DATA_LOSS
  /// naming the tensor, UNIMPLEMENTED for variants that are not read.
  virtual absl::StatusOr<WeightSource> Check(const Checkpoint& checkpoint, const WeightShape& shape,
                                             const MethodOptions& config) const {
    (void)checkpoint, (void)shape, (void)config;
    return absl::UnimplementedError("not a format of checkpoints");
  }
  /// The canonical matrix, of the format that Check said. After an OK Check; errors are values that
  /// no writer makes (a scale that is not finite, a NaN code).
  virtual absl::StatusOr<QuantizedMatrix> Load(const Checkpoint& checkpoint,
                                               const WeightShape& shape,
                                               const MethodOptions& config) const {
    (void)checkpoint, (void)shape, (void)config;
    return absl::UnimplementedError("not a format of checkpoints");
  }

  // ---- quantization of floats on load

  /// True when a profile may name it; false: its numbers are chosen with data, by other programs.
  virtual bool on_load() const { return false; }
  /// INVALID_ARGUMENT when a weight [n, k] does not suit `options`.
  virtual absl::Status CheckShape(const WeightShape& shape, const MethodOptions& options) const {
    (void)shape, (void)options;
    return absl::OkStatus();
  }
  /// `plain`: the dtype of weights that are not quantized. After an OK CheckShape.
  virtual QuantFormat FormatOf(const WeightShape& shape, const MethodOptions& options,
                               DType plain) const {
    (void)shape, (void)options;
    return QuantFormat::Plain(plain);
  }
  /// `w` [n, k] is f32, f16 or bf16 and finite. INVALID_ARGUMENT when a value does not fit the
  /// format.
  virtual absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w,
                                                   const MethodOptions& options,
                                                   DType plain) const {
    (void)w, (void)options, (void)plain;
    return absl::UnimplementedError("not a method on load");
  }
  /// OK when Backend::QuantizeRows makes of `w` what Quantize makes of it, so that a device may do
  /// it; INVALID_ARGUMENT as Quantize. UNIMPLEMENTED: the numbers are chosen by more than the
  /// format.
  virtual absl::Status CheckQuantizeRows(const TensorView& w, const MethodOptions& options) const {
    (void)w, (void)options;
    return absl::UnimplementedError("this method chooses numbers on the host");
  }
  /// How a Linear over weights quantized on load by `options` treats its input.
  virtual ActivationQuant ActivationOf(const MethodOptions& options) const {
    (void)options;
    return {};
  }
};

/// Every method, in the order in which a module's tensors are shown to them.
std::span<const Method* const> Methods();
/// nullptr when there is no such method.
const Method* FindMethod(std::string_view quant_method);
/// The method of options that were read.
const Method& MethodOf(const MethodOptions& options);

/// UNIMPLEMENTED naming a quant_method that quantd does not have, and what works instead.
/// refused.cc.
absl::Status RefuseMethod(std::string_view quant_method);

// Entries of the registry, one file each, that tests ask by name.
const Method& NoneMethod();
const Method& BitsAndBytesMethod();
const Method& GptqMethod();
const Method& AwqMethod();
const Method& AutoRoundMethod();
const Method& HqqMethod();
const Method& CompressedTensorsMethod();
const Method& Fp8Method();
const Method& TorchAoMethod();

}  // namespace quantd

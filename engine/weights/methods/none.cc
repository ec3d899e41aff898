// No quantization: weights are copied, rounded once where the dtype changes.
#include "engine/weights/methods/method.h"
#include "engine/weights/value_scan.h"
#include "kernels/quant/quantize.h"

namespace quantd {
namespace {

class None : public Method {
 public:
  std::string_view name() const override { return "none"; }
  bool on_load() const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource source) const override {
    if (source == OptionSource::kProfile) {
      for (const auto& [key, value] : reader.map()) {
        if (key != "quant_method") {
          reader.faults().Add("{}: has no meaning with quant_method: none", reader.Path(key));
        }
      }
    }
    return {};
  }

  QuantFormat FormatOf(const WeightShape&, const MethodOptions& options,
                       DType plain) const override {
    return QuantFormat::Plain(options.compute_dtype.value_or(plain));
  }

  absl::StatusOr<QuantizedMatrix> Quantize(const TensorView& w, const MethodOptions& options,
                                           DType plain) const override {
    const DType to = options.compute_dtype.value_or(plain);
    if (to == DType::kF16) RETURN_IF_ERROR(CheckFitsF16(w));
    return PlainMatrix(w, to);
  }

  // A backend takes plain values only in the weight's own dtype, where nothing is rounded.
  absl::Status CheckQuantizeRows(const TensorView&, const MethodOptions&) const override {
    return absl::OkStatus();
  }
};

}  // namespace

const Method& NoneMethod() {
  static const None kMethod;
  return kMethod;
}

}  // namespace quantd

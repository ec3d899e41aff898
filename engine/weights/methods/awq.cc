// AWQ checkpoints in AutoAWQ's "gemm" layout, which GPTQModel writes too. See qweight.h.
#include <algorithm>

#include "engine/weights/methods/method.h"
#include "engine/weights/methods/qweight.h"

namespace quantd {
namespace {

class Awq : public QWeightMethod {
 public:
  std::string_view name() const override { return "awq"; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource) const override {
    auto settings = std::make_shared<QWeightSettings>();
    settings->method = name();
    settings->layout = {QWeightLayout::Packing::kAwq, 4, ReadGroupSize(reader, 128), false};
    if (const int64_t bits = reader.Integer("bits", 4, 1, 8); bits != 4) {
      reader.faults().AddUnimplemented("{}: {} is not supported; supported: 4", reader.Path("bits"),
                                       bits);
    }
    // transformers says version, GPTQModel format; zero_point says nothing, as every file in this
    // layout has zero points.
    for (const char* key : {"version", "format", "checkpoint_format"}) {
      std::string layout = reader.String(key, "gemm");
      std::transform(layout.begin(), layout.end(), layout.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      if (layout == "gemm") continue;
      reader.faults().AddUnimplemented(
          "{}: \"{}\" is not supported; supported: gemm, which AutoAWQ writes with version: GEMM",
          reader.Path(key), layout);
    }
    MethodOptions options;
    options.method = name();
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return DetectQWeight(c, shape, QWeightLayout::Packing::kAwq);
  }
};

}  // namespace

const Method& AwqMethod() {
  static const Awq kMethod;
  return kMethod;
}

}  // namespace quantd

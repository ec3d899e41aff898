// GPTQ checkpoints: AutoGPTQ, GPTQModel, and optimum through transformers. Formats "gptq" (also
// when none is named) and "gptq_v2", which stores zero points as they are. See qweight.h.
#include "engine/weights/methods/method.h"
#include "engine/weights/methods/qweight.h"
#include "engine/weights/module_match.h"

namespace quantd {
namespace {

/// `dynamic`: expressions that match from the start of a module's name, "-:" before those that are
/// not quantized and "+:", or nothing, before those that are quantized otherwise.
void ReadDynamic(const OptionReader& reader, QWeightSettings& settings) {
  for (const auto& [key, value] : reader.Map("dynamic")) {
    const bool skips = key.rfind("-:", 0) == 0;
    const std::string expression = skips || key.rfind("+:", 0) == 0 ? key.substr(2) : key;
    const std::string where = reader.Path("dynamic") + "[\"" + key + "\"]";
    if (const absl::Status status = CheckOverridePattern("re:" + expression); !status.ok()) {
      reader.faults().Add(Annotate(status, where));
      continue;
    }
    QWeightOverride entry{"re:(?:" + expression + ").*", std::nullopt, std::nullopt};
    // What "-:" matches has floats in the file, if anything; it only ends the search.
    if (!skips && value.kind == OptionValue::Kind::kMap) {
      const OptionReader own(value.map, where, reader.faults());
      if (own.Find("bits") != nullptr) entry.bits = ReadQWeightBits(own, settings.layout.bits);
      if (own.Find("group_size") != nullptr) {
        entry.group_size = ReadGroupSize(own, settings.layout.group_size);
      }
    } else if (!skips) {
      reader.faults().Add("{}: \"{}\" is not a mapping", where, value.text);
    }
    settings.overrides.push_back(std::move(entry));
  }
}

class Gptq : public QWeightMethod {
 public:
  std::string_view name() const override { return "gptq"; }
  bool trainable_with_peft(const MethodOptions&) const override { return true; }

  MethodOptions Read(const OptionReader& reader, OptionSource) const override {
    auto settings = std::make_shared<QWeightSettings>();
    settings->method = name();
    if (reader.Find("bits") == nullptr) reader.faults().Add("{}: missing", reader.Path("bits"));
    settings->layout.bits = ReadQWeightBits(reader, 4);
    settings->layout.group_size = ReadGroupSize(reader, 128);
    settings->layout.zeros_minus_one = ReadFormat(reader) == "gptq";
    RefuseOther(reader, "pack_dtype", "int32");
    RefuseOther(reader, "method", "gptq");
    ReadDynamic(reader, *settings);
    MethodOptions options;
    options.method = name();
    options.settings = std::move(settings);
    return options;
  }

  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return DetectQWeight(c, shape, QWeightLayout::Packing::kGptq);
  }

 private:
  /// checkpoint_format or format, which newer writers both write.
  static std::string ReadFormat(const OptionReader& reader) {
    std::string format = reader.String("checkpoint_format", "");
    const std::string newer = reader.String("format", "");
    if (!format.empty() && !newer.empty() && format != newer) {
      reader.faults().Add("{}: \"{}\" contradicts checkpoint_format \"{}\"", reader.Path("format"),
                          newer, format);
    }
    if (format.empty()) format = newer.empty() ? "gptq" : newer;
    if (reader.Bool("is_marlin_format", false)) format = "marlin";  // AutoGPTQ 0.7
    if (format == "gptq" || format == "gptq_v2") return format;
    reader.faults().AddUnimplemented(
        "{}: \"{}\" is not supported; supported: gptq and gptq_v2, one of which it was repacked "
        "from",
        reader.Path("checkpoint_format"), format);
    return "gptq";
  }

  static void RefuseOther(const OptionReader& reader, const char* key, const char* supported) {
    const std::string value = reader.String(key, supported);
    if (value == supported) return;
    reader.faults().AddUnimplemented("{}: \"{}\" is not supported; supported: {}", reader.Path(key),
                                     value, supported);
  }
};

}  // namespace

const Method& GptqMethod() {
  static const Gptq kMethod;
  return kMethod;
}

}  // namespace quantd

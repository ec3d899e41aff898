// AutoRound checkpoints: GPTQ's or AWQ's tensors under a config of their own. See qweight.h.
#include <algorithm>
#include <array>

#include "engine/weights/methods/method.h"
#include "engine/weights/methods/qweight.h"
#include "engine/weights/module_match.h"

namespace quantd {
namespace {

struct PackingFormat {
  std::string_view name;
  QWeightLayout::Packing packing;
  bool zeros_minus_one;
};
// A kernel's name may follow: "auto_round:auto_gptq:exllamav2".
constexpr std::array<PackingFormat, 5> kPackings = {{
    {"auto_round:gptq", QWeightLayout::Packing::kGptq, true},
    {"auto_round:auto_gptq", QWeightLayout::Packing::kGptq, true},
    {"auto_round:gptqmodel", QWeightLayout::Packing::kGptq, false},
    {"auto_round:awq", QWeightLayout::Packing::kAwq, false},
    {"auto_round:auto_awq", QWeightLayout::Packing::kAwq, false},
}};
constexpr PackingFormat kPlain = {"auto_round", QWeightLayout::Packing::kGptq, false};

PackingFormat ReadPacking(const OptionReader& reader) {
  const std::string name = reader.String("packing_format", "auto_round:gptq");
  if (name == kPlain.name) return kPlain;
  for (const PackingFormat& p : kPackings) {
    if (!name.starts_with(p.name)) continue;
    const std::string_view kernel = std::string_view(name).substr(p.name.size());
    if (kernel.empty() || (kernel[0] == ':' && kernel.find("marlin") == std::string_view::npos)) {
      return p;
    }
  }
  reader.faults().AddUnimplemented(
      "{}: \"{}\" is not supported; supported: auto_round, auto_round:auto_gptq, "
      "auto_round:gptqmodel, auto_round:auto_awq",
      reader.Path("packing_format"), name);
  return kPackings[0];
}

/// A module's name, not an expression.
bool IsName(const std::string& key) {
  return std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '_' || c == '.' || c == '-';
  });
}

/// `extra_config`: by a module's name, or by an expression that occurs in it. Names count first.
void ReadExtraConfig(const OptionReader& reader, QWeightSettings& settings) {
  std::vector<QWeightOverride> expressions;
  for (const auto& [key, value] : reader.Map("extra_config")) {
    const std::string where = reader.Path("extra_config") + "[\"" + key + "\"]";
    if (value.kind != OptionValue::Kind::kMap) {
      reader.faults().Add("{}: \"{}\" is not a mapping", where, value.text);
      continue;
    }
    const OptionReader own(value.map, where, reader.faults());
    // 16 bits and more: not quantized, so the file has floats.
    if (own.Integer("bits", 4, 1, 32) > 8) continue;
    QWeightOverride entry;
    if (own.Find("bits") != nullptr) entry.bits = ReadQWeightBits(own, settings.layout.bits);
    if (own.Find("group_size") != nullptr) {
      entry.group_size = ReadGroupSize(own, settings.layout.group_size);
    }
    if (IsName(key)) {
      entry.pattern = key;
      settings.overrides.push_back(std::move(entry));
    } else if (const absl::Status status = CheckOverridePattern("re:" + key); !status.ok()) {
      reader.faults().Add(Annotate(status, where));
    } else {
      entry.pattern = "re:.*(?:" + key + ").*";
      expressions.push_back(std::move(entry));
    }
  }
  settings.overrides.insert(settings.overrides.end(), expressions.begin(), expressions.end());
}

class AutoRound : public QWeightMethod {
 public:
  std::string_view name() const override { return "auto-round"; }

  MethodOptions Read(const OptionReader& reader, OptionSource) const override {
    auto settings = std::make_shared<QWeightSettings>();
    settings->method = name();
    const PackingFormat packing = ReadPacking(reader);
    settings->layout = {packing.packing, ReadQWeightBits(reader, 4), ReadGroupSize(reader, 128),
                        packing.zeros_minus_one};
    if (packing.packing == QWeightLayout::Packing::kAwq && settings->layout.bits != 4) {
      reader.faults().AddUnimplemented("{}: {} is not supported with {}; supported: 4",
                                       reader.Path("bits"), settings->layout.bits, packing.name);
      settings->layout.bits = 4;
    }
    if (const std::string type = reader.String("data_type", "int");
        type != "int" && type != "int_sym" && type != "int_asym") {
      reader.faults().AddUnimplemented("{}: \"{}\" is not supported; supported: int",
                                       reader.Path("data_type"), type);
    }
    if (reader.Integer("act_bits", 16, 1, 32) < 16) {
      reader.faults().AddUnimplemented(
          "{}: quantized activations are not supported; instead: a compressed-tensors export",
          reader.Path("act_bits"));
    }
    if (reader.Find("rotation_config") != nullptr) {
      reader.faults().AddUnimplemented("{}: rotated weights are not supported",
                                       reader.Path("rotation_config"));
    }
    ReadExtraConfig(reader, *settings);
    MethodOptions options;
    options.method = name();
    options.settings = std::move(settings);
    return options;
  }

  // Only its config tells it from GPTQ and AWQ, whose methods come first in the registry.
  bool Detect(const Checkpoint& c, const WeightShape& shape) const override {
    return c.Find(shape.module + ".qweight") != nullptr;
  }
};

}  // namespace

const Method& AutoRoundMethod() {
  static const AutoRound kMethod;
  return kMethod;
}

}  // namespace quantd

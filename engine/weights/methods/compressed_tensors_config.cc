// The quantization_config of compressed-tensors 0.9 to 0.20. Keys that only tell how the numbers
// were found (observer, scale_dtype, version, ...) are ignored.
#include <algorithm>
#include <cstdio>

#include "engine/weights/methods/compressed_tensors.h"
#include "engine/weights/module_match.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using Group = CompressedTensorsGroup;
using Kind = ActivationQuant::Kind;

struct FormatName {
  Group::Format format;
  std::string_view name;
};
constexpr FormatName kFormats[] = {{Group::Format::kPacked, "pack-quantized"},
                                   {Group::Format::kInt, "int-quantized"},
                                   {Group::Format::kFloat, "float-quantized"},
                                   {Group::Format::kNvfp4, "nvfp4-pack-quantized"}};

constexpr std::string_view kInstead =
    "use a checkpoint in one of pack-quantized, int-quantized, float-quantized, "
    "nvfp4-pack-quantized, or the full-precision one with a profile";

/// A mapping with keys in it.
bool IsFilled(const OptionValue* v) {
  return v != nullptr && !(v->kind == OptionValue::Kind::kMap && v->map.empty());
}

// strategy, else what the library concludes from group_size.
std::string StrategyOf(const OptionReader& args) {
  const std::string strategy = args.String("strategy", "");
  if (!strategy.empty()) return strategy;
  const OptionValue* size = args.Find("group_size");
  if (size == nullptr) return "tensor";
  return size->number > 0 ? "group" : "channel";
}

int32_t GroupSizeOf(const OptionReader& args) {
  constexpr int64_t kLargest = 1 << 20;
  if (args.Find("group_size") == nullptr) {
    args.faults().Add("{}: missing, which strategy group needs", args.Path("group_size"));
  }
  return static_cast<int32_t>(args.Integer("group_size", 128, 1, kLargest));
}

class GroupReader {
 public:
  GroupReader(const OptionReader& reader, const std::string& format, Group& group)
      : reader_(reader), faults_(reader.faults()), group_(group) {
    const OptionReader weights(reader.Map("weights"), reader.Path("weights"), faults_);
    if (reader.Find("weights") == nullptr) {
      faults_.AddUnimplemented(
          "{}: missing; groups that quantize only activations are not supported; {}",
          weights.where(), kInstead);
      return;
    }
    ReadFormat(format, weights);
    ReadWeights(weights);
    if (reader.Find("input_activations") != nullptr) {
      ReadActivations(
          OptionReader(reader.Map("input_activations"), reader.Path("input_activations"), faults_));
    }
    if (reader.Find("output_activations") != nullptr) {
      faults_.AddUnimplemented("{}: quantized outputs are not supported; {}",
                               reader.Path("output_activations"), kInstead);
    }
  }

 private:
  void ReadFormat(const std::string& top, const OptionReader& weights) {
    const bool own = reader_.Find("format") != nullptr;
    std::string name = reader_.String("format", top);
    if (name == "naive-quantized") {  // the type says which
      name = weights.String("type", "int") == "float" ? "float-quantized" : "int-quantized";
    }
    for (const FormatName& f : kFormats) {
      if (f.name != name) continue;
      group_.format = f.format;
      return;
    }
    const std::string where = own ? reader_.Path("format") : "format of " + reader_.where();
    if (name == "marlin-24" || name == "sparse-24-bitmask" || name == "sparse-bitmask") {
      faults_.AddUnimplemented("{}: \"{}\" stores sparse weights, which are not supported; {}",
                               where, name, kInstead);
    } else if (name == "dense" || name == "fakequant" || name.empty()) {
      faults_.AddUnimplemented(
          "{}: \"{}\": weights are stored as floats beside their scales, not compressed; save "
          "with save_compressed=True, or remove quantization_config and use a profile",
          where, name);
    } else {
      faults_.AddUnimplemented("{}: \"{}\" is not supported; {}", where, name, kInstead);
    }
  }

  void ReadWeights(const OptionReader& args) {
    constexpr std::string_view kTypes[] = {"int", "float"};
    const bool is_float = args.OneOf("type", "int", kTypes) == "float";
    group_.bits = static_cast<int>(args.Integer("num_bits", 8, 1, 16));
    group_.symmetric = args.Bool("symmetric", true);
    const std::string strategy = StrategyOf(args);
    if (strategy == "tensor") {
      group_.strategy = Group::Strategy::kTensor;
    } else if (strategy == "channel") {
      group_.strategy = Group::Strategy::kChannel;
    } else if (strategy == "group" || strategy == "tensor_group") {
      group_.strategy = Group::Strategy::kGroup;
      group_.group_size = GroupSizeOf(args);
    } else if (strategy == "block") {
      group_.strategy = Group::Strategy::kBlock;
      ReadBlock(args);
    } else {
      faults_.AddUnimplemented("{}: \"{}\" is not one of tensor, channel, group, block",
                               args.Path("strategy"), strategy);
    }
    ReadColumnOrder(args);
    CheckWidth(args, is_float);
  }

  // [128, 128], or "128x128" in old files.
  void ReadBlock(const OptionReader& args) {
    const OptionValue* v = args.Find("block_structure");
    std::vector<int64_t> sides;
    if (v != nullptr && v->kind == OptionValue::Kind::kString) {
      long long rows = 0, columns = 0;
      int used = 0;
      if (std::sscanf(v->text.c_str(), "%9lldx%9lld%n", &rows, &columns, &used) == 2 &&
          static_cast<size_t>(used) == v->text.size()) {
        sides = {rows, columns};
      }
    } else {
      sides = args.Integers("block_structure");
    }
    constexpr int64_t kLargest = 1 << 20;
    if (sides.size() != 2 || std::min(sides[0], sides[1]) < 1 ||
        std::max(sides[0], sides[1]) > kLargest) {
      faults_.Add("{}: \"{}\" is not [rows, columns], which strategy block needs",
                  args.Path("block_structure"), v == nullptr ? "" : v->text);
      return;
    }
    group_.block_rows = static_cast<int32_t>(sides[0]);
    group_.block_columns = static_cast<int32_t>(sides[1]);
  }

  // "group" (true, "dynamic") stores weight_g_idx; "weight" ("static") stores nothing.
  void ReadColumnOrder(const OptionReader& args) {
    const OptionValue* v = args.Find("actorder");
    if (v == nullptr) return;
    if (v->kind == OptionValue::Kind::kBool) {
      group_.has_column_order = v->boolean;
      return;
    }
    constexpr std::string_view kOrders[] = {"group", "dynamic", "weight", "static"};
    const std::string order = args.OneOf("actorder", "weight", kOrders);
    group_.has_column_order = order == "group" || order == "dynamic";
  }

  // What each format can hold.
  void CheckWidth(const OptionReader& args, bool is_float) {
    const auto refuse = [&](std::string_view what) {
      faults_.AddUnimplemented("{}: {} of {} bits in {} is not supported{}; {}", args.where(),
                               is_float ? "float" : "int", group_.bits,
                               quantd::ToString(group_.format), what, kInstead);
    };
    const bool block = group_.strategy == Group::Strategy::kBlock;
    switch (group_.format) {
      case Group::Format::kPacked:
        if (is_float || block) return refuse(block ? " with strategy block" : "");
        if (group_.bits != 2 && group_.bits != 3 && group_.bits != 4 && group_.bits != 8) {
          return refuse(" (2, 3, 4 and 8 are)");
        }
        break;
      case Group::Format::kInt:
        if (is_float || group_.bits != 8 || block) return refuse(" (int 8 is)");
        break;
      case Group::Format::kFloat:
        if (!is_float || group_.bits != 8 || !group_.symmetric) {
          return refuse(" (symmetric float 8 is)");
        }
        break;
      case Group::Format::kNvfp4:
        if (!is_float || group_.bits != 4 || group_.group_size != 16 || !group_.symmetric) {
          return refuse(" (symmetric float 4 in groups of 16 is)");
        }
        break;
    }
    const bool grouped = group_.strategy == Group::Strategy::kGroup;
    if (group_.has_column_order && (!grouped || group_.format == Group::Format::kNvfp4)) {
      faults_.Add("{}: needs strategy group", args.Path("actorder"));
    }
  }

  void ReadActivations(const OptionReader& args) {
    constexpr std::string_view kTypes[] = {"int", "float"};
    const bool is_float = args.OneOf("type", "int", kTypes) == "float";
    const int64_t bits = args.Integer("num_bits", 8, 1, 16);
    const bool symmetric = args.Bool("symmetric", true);
    const OptionValue* dynamic = args.Find("dynamic");
    const bool local = dynamic != nullptr && dynamic->kind == OptionValue::Kind::kString;
    const bool on_the_fly = !local && args.Bool("dynamic", false);
    const std::string strategy = StrategyOf(args);

    ActivationQuant& a = group_.activation;
    a.rounding = ActivationQuant::Rounding::kEveryStep;
    group_.static_activation = !on_the_fly;
    group_.symmetric_activation = symmetric;
    if (bits == 8 && !local) {
      if (on_the_fly && symmetric && strategy == "token") {
        a.kind = is_float ? Kind::kFp8Token : Kind::kInt8Token;
      } else if (on_the_fly && symmetric && strategy == "group" && is_float) {
        a.kind = Kind::kFp8Group;
        a.group = GroupSizeOf(args);
      } else if (!on_the_fly && strategy == "tensor" && (symmetric || !is_float)) {
        a.kind = is_float ? Kind::kFp8Tensor : Kind::kInt8Tensor;
      }
    }
    if (a.kind != Kind::kNone) return;
    faults_.AddUnimplemented(
        "{}: {} {} activations of {} {} bits per {} are not supported; supported: symmetric "
        "dynamic int 8 or float 8 per token, symmetric dynamic float 8 per group, static int 8 or "
        "symmetric float 8 per tensor; or a checkpoint that quantizes weights only",
        args.where(), symmetric ? "symmetric" : "asymmetric",
        local        ? "locally dynamic"
        : on_the_fly ? "dynamic"
                     : "static",
        is_float ? "float" : "int", bits, strategy);
  }

  const OptionReader& reader_;
  FaultList& faults_;
  Group& group_;
};

void CheckPatterns(const std::vector<std::string>& patterns, const std::string& where,
                   FaultList& faults) {
  for (const std::string& p : patterns) {
    if (!p.starts_with("re:")) continue;
    if (const absl::Status s = CheckOverridePattern(p); !s.ok()) {
      faults.AddUnimplemented("{}: {}", where, Message(s));
    }
  }
}

// Python's re.match: from the start of the name, not to its end.
bool MatchesRegex(const std::string& target, const std::string& module) {
  return target.starts_with("re:") && OverrideMatches("re:(?:" + target.substr(3) + ").*", module);
}

// The classes of a linear, as compressed-tensors and vLLM name them.
bool MatchesClass(const std::string& target) {
  return target == "Linear" || target == "LinearBase";
}

}  // namespace

std::string_view ToString(CompressedTensorsGroup::Format format) {
  for (const FormatName& f : kFormats) {
    if (f.format == format) return f.name;
  }
  return "?";
}

const CompressedTensorsGroup* CompressedTensorsSettings::GroupOf(const std::string& module) const {
  for (const std::string& i : ignore) {
    if (i == module || MatchesRegex(i, module) || MatchesClass(i)) return nullptr;
  }
  // Smaller is more specific.
  constexpr int kNone = 3;
  const auto rank_of = [&](const std::string& target) {
    return target == module               ? 0
           : MatchesRegex(target, module) ? 1
           : MatchesClass(target)         ? 2
                                          : kNone;
  };
  const CompressedTensorsGroup* best = nullptr;
  std::pair<int, std::string> best_key;
  for (const CompressedTensorsGroup& group : groups) {
    for (const std::string& target : group.targets) {
      const std::pair<int, std::string> key(rank_of(target), target);
      if (key.first == kNone || (best != nullptr && best_key < key)) continue;
      best = &group;
      best_key = key;
    }
  }
  return best;
}

void ReadCompressedTensors(const OptionReader& reader, CompressedTensorsSettings& settings) {
  FaultList& faults = reader.faults();
  const std::string format = reader.String("format", "");
  // Of the stages of the library only these are stored compressed; old releases left "frozen".
  const std::string status = reader.String("quantization_status", "compressed");
  if (status != "compressed" && status != "frozen") {
    faults.AddUnimplemented("{}: \"{}\" is not supported: the weights are not compressed yet; {}",
                            reader.Path("quantization_status"), status, kInstead);
  }
  const OptionReader sparsity(reader.Map("sparsity_config"), reader.Path("sparsity_config"),
                              faults);
  const std::string sparse = sparsity.String("format", "dense");
  if (sparse != "dense") {
    faults.AddUnimplemented("{}: \"{}\" stores sparse weights, which are not supported; {}",
                            sparsity.Path("format"), sparse, kInstead);
  }
  if (IsFilled(reader.Find("transform_config"))) {
    const OptionReader transform(reader.Map("transform_config"), reader.Path("transform_config"),
                                 faults);
    if (transform.Find("config_groups") == nullptr || IsFilled(transform.Find("config_groups"))) {
      faults.AddUnimplemented("{}: rotated weights (spinquant, quip) are not supported; {}",
                              reader.Path("transform_config"), kInstead);
    }
  }
  // kv_cache_scheme is not refused: it calibrates the library's cache and changes no weight. What
  // quantd's cache holds is the profile's kv_cache.dtype, whose int8 finds its scales by itself.
  settings.has_kv_scales = reader.Find("kv_cache_scheme") != nullptr;

  settings.ignore = reader.Strings("ignore");
  CheckPatterns(settings.ignore, reader.Path("ignore"), faults);
  const OptionReader groups(reader.Map("config_groups"), reader.Path("config_groups"), faults);
  if (groups.map().empty()) faults.Add("{}: missing or empty", groups.where());
  for (const auto& [name, value] : groups.map()) {
    const std::string where = groups.Path(name);
    if (value.kind != OptionValue::Kind::kMap) {
      faults.AddUnimplemented("{}: preset schemes are not supported, only written-out groups",
                              where);
      continue;
    }
    const OptionReader group_reader(value.map, where, faults);
    CompressedTensorsGroup group;
    group.name = name;
    group.targets = group_reader.Strings("targets");
    if (group.targets.empty()) faults.Add("{}: missing or empty", group_reader.Path("targets"));
    CheckPatterns(group.targets, group_reader.Path("targets"), faults);
    GroupReader(group_reader, format, group);
    settings.groups.push_back(std::move(group));
  }
}

}  // namespace quantd

// What a parsed profile answers. Reading YAML is profile_yaml.cc's.
#include "engine/weights/profile.h"

#include <algorithm>
#include <filesystem>

#include "engine/weights/built_in_profiles.h"
#include "engine/weights/files.h"
#include "engine/weights/module_match.h"
#include "engine/weights/quantization_options.h"

namespace quantd {
namespace {

bool IsHead(const std::string& module) {
  constexpr std::string_view kHead = "lm_head";
  return module == kHead ||
         (module.size() > kHead.size() &&
          module.compare(module.size() - kHead.size() - 1, std::string::npos, ".lm_head") == 0);
}

// A double-quoted YAML scalar.
std::string Quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string DTypeText(const std::optional<DType>& dtype) {
  return dtype ? std::string(ToString(*dtype)) : "auto";
}

std::string SkipText(const std::vector<std::string>& patterns) {
  std::string out = "[";
  for (const std::string& p : patterns) out += (out.size() > 1 ? ", " : "") + Quoted(p);
  return out + "]";
}

// The keys of one `quantization:` mapping, each on a line of its own behind `indent`.
std::string QuantizationYaml(const MethodOptions& o, const std::string& indent) {
  switch (o.method) {
    case QuantMethod::kNone: return indent + "quant_method: none\n";
    case QuantMethod::kBitsAndBytes4:
      return fmt::format(
          "{0}quant_method: bitsandbytes\n{0}load_in_4bit: true\n{0}bnb_4bit_quant_type: {1}\n"
          "{0}bnb_4bit_use_double_quant: {2}\n{0}bnb_4bit_compute_dtype: "
          "{3}\n{0}llm_int8_skip_modules: {4}\n",
          indent, QuantTypeName(o.codec), o.double_quant, DTypeText(o.compute_dtype),
          SkipText(o.skip_modules));
    case QuantMethod::kBitsAndBytes8:
      return fmt::format(
          "{0}quant_method: bitsandbytes\n{0}load_in_8bit: true\n{0}llm_int8_threshold: {1}\n"
          "{0}llm_int8_skip_modules: {2}\n",
          indent, o.int8_threshold, SkipText(o.skip_modules));
  }
  return "";
}

std::string BodyYaml(const QuantProfile& p) {
  std::string out;
  out += fmt::format("dtype: {}\n", DTypeText(p.quantization.compute_dtype));
  out += "quantization:\n" + QuantizationYaml(p.quantization, "  ");
  if (p.overrides.empty()) out += "overrides: []\n";
  if (!p.overrides.empty()) out += "overrides:\n";
  for (const ProfileOverride& o : p.overrides) {
    out += fmt::format("  - match: {}\n", Quoted(o.match));
    if (o.quantization.method == QuantMethod::kNone) {
      out += fmt::format("    dtype: {}\n", DTypeText(o.quantization.compute_dtype));
    }
    out += "    quantization:\n" + QuantizationYaml(o.quantization, "      ");
  }
  out += fmt::format("kv_cache:\n  dtype: {}\n", DTypeText(p.kv_dtype));
  out += fmt::format("engine:\n  llm_int8_outlier_scope: {}\n",
                     p.outlier_scope == ActivationQuant::OutlierScope::kRow ? "row" : "call");
  return out;
}

}  // namespace

MethodOptions QuantProfile::For(const std::string& module, bool tied) const {
  for (const ProfileOverride& o : overrides) {
    if (OverrideMatches(o.match, module)) return o.quantization;
  }
  const bool skipped =
      tied || IsHead(module) ||
      std::any_of(quantization.skip_modules.begin(), quantization.skip_modules.end(),
                  [&](const std::string& p) { return SkipMatches(p, module); });
  if (!skipped) return quantization;
  MethodOptions none;
  none.compute_dtype = quantization.compute_dtype;
  return none;
}

DType QuantProfile::ComputeDType(DType checkpoint_dtype) const {
  return quantization.compute_dtype.value_or(checkpoint_dtype);
}

std::string QuantProfile::ToYaml() const {
  return fmt::format("name: {}\ndescription: {}\n", Quoted(name), Quoted(description)) +
         BodyYaml(*this);
}

std::string QuantProfile::Hash() const {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a, 64 bits
  for (const char c : BodyYaml(*this))
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

std::vector<std::string> BuiltInProfiles() {
  std::vector<std::string> names;
  names.reserve(kNumBuiltInProfiles);
  for (int i = 0; i < kNumBuiltInProfiles; ++i) names.emplace_back(kBuiltInProfiles[i].name);
  std::sort(names.begin(), names.end());
  return names;
}

absl::StatusOr<QuantProfile> LoadProfile(const std::string& name_or_path) {
  constexpr int64_t kMaxProfileBytes = 1 << 20;
  const std::filesystem::path path(name_or_path);
  if (name_or_path.find('/') != std::string::npos || path.extension() == ".yaml" ||
      path.extension() == ".yml") {
    ASSIGN_OR_RETURN(const std::string yaml, ReadTextFile(path, kMaxProfileBytes));
    return ParseProfile(yaml, name_or_path);
  }
  const std::filesystem::path shipped =
      std::filesystem::path("configs/profiles") / (name_or_path + ".yaml");
  std::error_code error;
  if (std::filesystem::exists(shipped, error)) {
    ASSIGN_OR_RETURN(const std::string yaml, ReadTextFile(shipped, kMaxProfileBytes));
    return ParseProfile(yaml, shipped.string());
  }
  for (int i = 0; i < kNumBuiltInProfiles; ++i) {
    if (name_or_path == kBuiltInProfiles[i].name) {
      return ParseProfile(kBuiltInProfiles[i].yaml, "profiles/" + name_or_path + ".yaml");
    }
  }
  return NotFound("no profile \"{}\"; known: {}; or give the path of a .yaml file", name_or_path,
                  fmt::join(BuiltInProfiles(), ", "));
}

}  // namespace quantd

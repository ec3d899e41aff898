// What a parsed profile answers. Reading YAML is profile_yaml.cc's.
#include "engine/weights/profile.h"

#include <algorithm>
#include <filesystem>

#include "engine/weights/built_in_profiles.h"
#include "engine/weights/files.h"
#include "engine/weights/fnv.h"
#include "engine/weights/methods/method.h"
#include "engine/weights/module_match.h"
#include "kernels/status.h"

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
  std::string lines = fmt::format("quant_method: {}\n", o.method);
  if (!o.is_none()) {
    const Method& method = MethodOf(o);
    lines += o.settings->ToYaml();
    if (const std::string_view key = method.compute_dtype_key(o); !key.empty()) {
      lines += fmt::format("{}: {}\n", key, DTypeText(o.compute_dtype));
    }
    lines += fmt::format("{}: {}\n", method.skip_key(), SkipText(o.skip_modules));
  }
  std::string out;
  for (size_t at = 0; at < lines.size();) {
    const size_t end = lines.find('\n', at) + 1;
    out += indent + lines.substr(at, end - at);
    at = end;
  }
  return out;
}

std::string_view ModeText(ActivationMode mode) {
  switch (mode) {
    case ActivationMode::kFused: return "fused";
    case ActivationMode::kReference: return "reference";
    case ActivationMode::kNone: return "none";
  }
  return "?";
}

std::string BodyYaml(const QuantProfile& p) {
  std::string out;
  out += fmt::format("dtype: {}\n", DTypeText(p.quantization.compute_dtype));
  out += "quantization:\n" + QuantizationYaml(p.quantization, "  ");
  if (p.overrides.empty()) out += "overrides: []\n";
  if (!p.overrides.empty()) out += "overrides:\n";
  for (const ProfileOverride& o : p.overrides) {
    out += fmt::format("  - match: {}\n", Quoted(o.match));
    if (o.quantization.is_none()) {
      out += fmt::format("    dtype: {}\n", DTypeText(o.quantization.compute_dtype));
    }
    out += "    quantization:\n" + QuantizationYaml(o.quantization, "      ");
  }
  out += fmt::format("kv_cache:\n  dtype: {}\n", DTypeText(p.kv_dtype));
  out += fmt::format("engine:\n  llm_int8_outlier_scope: {}\n",
                     p.outlier_scope == ActivationQuant::OutlierScope::kRow ? "row" : "call");
  // Left out where it changes nothing, so that hashes from before it existed stay as they are.
  if (p.activation != ActivationMode::kFused) {
    out += fmt::format("  activation: {}\n", ModeText(p.activation));
  }
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

ActivationQuant QuantProfile::ActivationFor(ActivationQuant prescribed) const {
  if (activation == ActivationMode::kNone) return {};
  prescribed.scope = outlier_scope;
  prescribed.reference = activation == ActivationMode::kReference && ReplacesInput(prescribed.kind);
  return prescribed;
}

DType QuantProfile::ComputeDType(DType checkpoint_dtype) const {
  return quantization.compute_dtype.value_or(checkpoint_dtype);
}

std::string QuantProfile::ToYaml() const {
  return fmt::format("name: {}\ndescription: {}\n", Quoted(name), Quoted(description)) +
         BodyYaml(*this);
}

std::string QuantProfile::Hash() const {
  Fnv64 hash;
  hash.Add(std::string_view(BodyYaml(*this)));
  return hash.Hex();
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

// OptionMap: the keys of one mapping with typed scalars, whatever file they came from: a profile's
// YAML and config.json's quantization_config are read by one set of rules. Values; not thread-safe
// to modify.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/fault_list.h"

namespace quantd {

struct OptionEntry;
using OptionMap = std::vector<OptionEntry>;  // in file order, keys unique

struct OptionValue {
  enum class Kind { kNull, kBool, kNumber, kString, kStringList, kList, kMap };
  Kind kind = Kind::kNull;
  bool boolean = false;
  double number = 0.0;
  std::string text;                // as written, for messages; the value of kString
  std::vector<std::string> list;   // kStringList: every item is a string, or there is none
  std::vector<OptionValue> items;  // kList
  OptionMap map;                   // kMap
};

struct OptionEntry {
  std::string key;
  OptionValue value;
};

/// The mapping that a YAML text is; `source` names it in messages. INVALID_ARGUMENT when it is not
/// valid, not a mapping, or a key of the top level occurs twice. profile_yaml.cc.
absl::StatusOr<OptionMap> ParseYamlOptions(const std::string& yaml, const std::string& source);

/// Why keys that put parts of a model elsewhere (device_map, offload) are refused, and what
/// instead.
inline constexpr std::string_view kOneBackend =
    "a model lives on one backend; instead: --backend, which names it";

/// Takes device_map out of `map`; a fault when it is not null. For mappings that Hugging Face's
/// keys may stand in.
void RefuseDeviceMap(OptionMap& map, const std::string& where, FaultList& faults);

/// Reads typed values out of an OptionMap and reports what does not fit as "<where>.<key>: ...".
class OptionReader {
 public:
  OptionReader(const OptionMap& map, std::string where, FaultList& faults)
      : map_(map), where_(std::move(where)), faults_(faults) {}

  /// nullptr when the key is absent or null.
  const OptionValue* Find(std::string_view key) const;
  /// `fallback` when absent; a value of another kind is a fault.
  bool Bool(std::string_view key, bool fallback) const;
  double Number(std::string_view key, double fallback) const;
  std::string String(std::string_view key, const std::string& fallback) const;
  /// A number without a fraction, from `least` to `most`.
  int64_t Integer(std::string_view key, int64_t fallback, int64_t least, int64_t most) const;
  /// One of `allowed`.
  std::string OneOf(std::string_view key, const std::string& fallback,
                    std::span<const std::string_view> allowed) const;
  /// A mapping; empty when absent.
  const OptionMap& Map(std::string_view key) const;
  /// A list of integers, or null.
  std::vector<int64_t> Integers(std::string_view key) const;
  /// A list of strings, or null.
  std::vector<std::string> Strings(std::string_view key) const;
  /// Faults every key that is not in `known`, naming the nearest.
  void CheckKeys(std::span<const std::string_view> known) const;

  std::string Path(std::string_view key) const;
  const std::string& where() const { return where_; }
  const OptionMap& map() const { return map_; }
  FaultList& faults() const { return faults_; }

 private:
  const OptionMap& map_;
  const std::string where_;
  FaultList& faults_;
};

}  // namespace quantd

#include "engine/weights/option_map.h"

#include <algorithm>
#include <cmath>

#include "engine/weights/nearest.h"

namespace quantd {

std::string OptionReader::Path(std::string_view key) const {
  return where_.empty() ? std::string(key) : fmt::format("{}.{}", where_, key);
}

const OptionValue* OptionReader::Find(std::string_view key) const {
  for (const auto& [name, value] : map_) {
    if (name == key) return value.kind == OptionValue::Kind::kNull ? nullptr : &value;
  }
  return nullptr;
}

bool OptionReader::Bool(std::string_view key, bool fallback) const {
  const OptionValue* v = Find(key);
  if (v == nullptr) return fallback;
  if (v->kind == OptionValue::Kind::kBool) return v->boolean;
  faults_.Add("{}: \"{}\" is not one of true, false", Path(key), v->text);
  return fallback;
}

double OptionReader::Number(std::string_view key, double fallback) const {
  const OptionValue* v = Find(key);
  if (v == nullptr) return fallback;
  if (v->kind == OptionValue::Kind::kNumber) return v->number;
  faults_.Add("{}: \"{}\" is not a number", Path(key), v->text);
  return fallback;
}

int64_t OptionReader::Integer(std::string_view key, int64_t fallback, int64_t least,
                              int64_t most) const {
  const OptionValue* v = Find(key);
  if (v == nullptr) return fallback;
  // Written so that a NaN fails; the bounds are exact in double.
  if (v->kind == OptionValue::Kind::kNumber && v->number >= static_cast<double>(least) &&
      v->number <= static_cast<double>(most) && v->number == std::floor(v->number)) {
    return static_cast<int64_t>(v->number);
  }
  faults_.Add("{}: \"{}\" is not an integer from {} to {}", Path(key), v->text, least, most);
  return fallback;
}

std::string OptionReader::OneOf(std::string_view key, const std::string& fallback,
                                std::span<const std::string_view> allowed) const {
  const std::string value = String(key, fallback);
  if (value == fallback || std::find(allowed.begin(), allowed.end(), value) != allowed.end()) {
    return value;
  }
  faults_.Add("{}: \"{}\" is not one of {}", Path(key), value, fmt::join(allowed, ", "));
  return fallback;
}

const OptionMap& OptionReader::Map(std::string_view key) const {
  static const OptionMap kEmpty;
  const OptionValue* v = Find(key);
  if (v == nullptr) return kEmpty;
  if (v->kind == OptionValue::Kind::kMap) return v->map;
  faults_.Add("{}: \"{}\" is not a mapping", Path(key), v->text);
  return kEmpty;
}

std::vector<int64_t> OptionReader::Integers(std::string_view key) const {
  const OptionValue* v = Find(key);
  std::vector<int64_t> integers;
  if (v == nullptr) return integers;
  const auto& items = v->items;
  const bool ok = (v->kind == OptionValue::Kind::kList) &&
                  std::all_of(items.begin(), items.end(), [](const OptionValue& i) {
                    return i.kind == OptionValue::Kind::kNumber && std::fabs(i.number) < 1e15 &&
                           i.number == std::floor(i.number);
                  });
  if (!ok) {
    faults_.Add("{}: \"{}\" is not a list of integers", Path(key), v->text);
    return integers;
  }
  for (const OptionValue& i : items) integers.push_back(static_cast<int64_t>(i.number));
  return integers;
}

std::string OptionReader::String(std::string_view key, const std::string& fallback) const {
  const OptionValue* v = Find(key);
  if (v == nullptr) return fallback;
  if (v->kind == OptionValue::Kind::kString) return v->text;
  faults_.Add("{}: \"{}\" is not a string", Path(key), v->text);
  return fallback;
}

std::vector<std::string> OptionReader::Strings(std::string_view key) const {
  const OptionValue* v = Find(key);
  if (v == nullptr) return {};
  if (v->kind == OptionValue::Kind::kStringList) return v->list;
  faults_.Add("{}: \"{}\" is not a list of strings", Path(key), v->text);
  return {};
}

void OptionReader::CheckKeys(std::span<const std::string_view> known) const {
  for (const auto& [name, value] : map_) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    faults_.Add("{}: unknown key; the nearest known one is \"{}\"", Path(name),
                NearestName(name, known));
  }
}

void RefuseDeviceMap(OptionMap& map, const std::string& where, FaultList& faults) {
  constexpr std::string_view kKey = "device_map";
  const OptionReader reader(map, where, faults);
  if (reader.Find(kKey) != nullptr) {
    faults.AddUnimplemented("{}: not supported: {}", reader.Path(kKey), kOneBackend);
  }
  std::erase_if(map, [&](const OptionEntry& entry) { return entry.key == kKey; });
}

}  // namespace quantd

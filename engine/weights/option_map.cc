#include "engine/weights/option_map.h"

#include <algorithm>

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

}  // namespace quantd

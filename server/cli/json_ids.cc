// JSON to ids and back; every type is checked before it is read.
#include "server/cli/json_ids.h"

#include <nlohmann/json.hpp>

#include "engine/weights/json_dump.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using Json = nlohmann::json;

absl::StatusOr<std::vector<int32_t>> Ids(const Json& json, const std::string& where) {
  if (!json.is_array()) return InvalidArgument("{}: not a JSON array of token ids", where);
  std::vector<int32_t> ids;
  for (const Json& element : json) {
    const bool fits = element.is_number_unsigned() && element.get<uint64_t>() <= INT32_MAX;
    if (!fits)
      return InvalidArgument("{}: {} is not a token id", where, element.dump(-1, ' ', true));
    ids.push_back(element.get<int32_t>());
  }
  return ids;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> IdsFromJson(const std::string& json,
                                                 const std::string& where) {
  return Ids(Json::parse(json, nullptr, false), where);  // what does not parse is not an array
}

absl::StatusOr<std::vector<std::vector<int32_t>>> IdListsFromJson(const std::string& text,
                                                                  const std::string& where) {
  Json json = Json::parse(text, nullptr, false);
  if (json.is_object()) json = Json::array({json});
  if (!json.is_array() || json.empty()) {
    return InvalidArgument("{}: not {{\"token_ids\": [...]}} or a list of such", where);
  }
  std::vector<std::vector<int32_t>> out;
  for (size_t i = 0; i < json.size(); ++i) {
    const std::string entry = fmt::format("{}: [{}].token_ids", where, i);
    if (!json[i].is_object() || !json[i].contains("token_ids"))
      return InvalidArgument("{}: missing", entry);
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, Ids(json[i]["token_ids"], entry));
    if (ids.empty()) return InvalidArgument("{}: empty", entry);
    out.push_back(std::move(ids));
  }
  return out;
}

absl::StatusOr<std::string> TextFromJson(const std::string& text, const std::string& where) {
  const Json json = Json::parse(text, nullptr, false);
  if (!json.is_string()) return InvalidArgument("{}: not a JSON string", where);
  return json.get<std::string>();
}

std::string IdsToJson(std::span<const int32_t> ids) {
  return Json(std::vector<int32_t>(ids.begin(), ids.end())).dump();
}

std::string TextToJson(const std::string& text) { return DumpJson(Json(text)); }

}  // namespace quantd

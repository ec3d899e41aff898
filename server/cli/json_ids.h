// Token ids and texts in JSON, for the commands that read and write them. Pure functions.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

/// "[1,2]" to ids. INVALID_ARGUMENT unless `json` is an array of integers in [0, 2^31); `where`
/// names it in messages.
absl::StatusOr<std::vector<int32_t>> IdsFromJson(const std::string& json, const std::string& where);
/// {"token_ids": [...]}, or a list of such, to one vector each; none is empty.
absl::StatusOr<std::vector<std::vector<int32_t>>> IdListsFromJson(const std::string& json,
                                                                  const std::string& where);
/// The string of a JSON string.
absl::StatusOr<std::string> TextFromJson(const std::string& json, const std::string& where);

std::string IdsToJson(std::span<const int32_t> ids);
std::string TextToJson(const std::string& text);

}  // namespace quantd

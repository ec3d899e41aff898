// DumpJson: JSON as text, whatever its strings hold. A template, so that nlohmann's header stays in
// .cc files.
#pragma once

#include <string>

namespace quantd {

/// `value`, of nlohmann's json or ordered_json, on one line or indented. Names and texts of a
/// stranger's files may be no UTF-8: what is not becomes U+FFFD, where dump() alone would throw.
template <typename Json>
std::string DumpJson(const Json& value, int indent = -1) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace quantd

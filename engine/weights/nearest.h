// NearestName, NearName: the known name a misspelt one most likely meant. Pure functions.
#pragma once

#include <span>
#include <string_view>

namespace quantd {

/// The entry of `known` with the smallest edit distance to `name`; empty when `known` is.
std::string_view NearestName(std::string_view name, std::span<const std::string_view> known);

/// The same where it is near: two letters off, or every third one. Empty where none is.
std::string_view NearName(std::string_view name, std::span<const std::string_view> known);

}  // namespace quantd

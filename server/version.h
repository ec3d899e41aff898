// The version of quantd, as `quantd version` and GetServerInfo say it.
#pragma once

namespace quantd {

inline constexpr char kVersion[] = QUANTD_VERSION;  // CMake's project(VERSION)

}  // namespace quantd

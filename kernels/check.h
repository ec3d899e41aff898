// QUANTD_CHECK: aborts with file, line and values when a programmer's assumption is broken. Never
// for anything a user, file or network can cause; those return absl::Status (kernels/status.h).
#pragma once

#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>

#define QUANTD_CHECK(condition, ...)                                                      \
  do {                                                                                    \
    if (!(condition)) [[unlikely]] {                                                      \
      fmt::print(stderr, "{}:{}: CHECK failed: {}. {}\n", __FILE__, __LINE__, #condition, \
                 fmt::format("" __VA_ARGS__));                                            \
      std::abort();                                                                       \
    }                                                                                     \
  } while (false)

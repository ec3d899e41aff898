// The name of a test whose parameter is a profile's: GoogleTest allows no dash in it.
#pragma once

#include <gtest/gtest.h>

#include <string>

namespace quantd {

struct WithoutDashes {
  template <class Param>
  std::string operator()(const ::testing::TestParamInfo<Param>& test) const {
    std::string name = test.param;
    std::erase(name, '-');
    return name;
  }
};

}  // namespace quantd

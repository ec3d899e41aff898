// A quantization profile.
#include "engine/weights/profile.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(profile) {
  const auto profile = ParseProfile(fuzz::Text(bytes), "fuzzed");
  if (!profile.ok()) return;
  // What is said to be in force must say the same when it is read.
  const std::string effective = profile->ToYaml();
  const auto again = ParseProfile(effective, "effective");
  QUANTD_CHECK(again.ok(), "{}\n{}", again.status().ToString(), effective);
  QUANTD_CHECK(again->ToYaml() == effective, "{}", effective);
}

}  // namespace
}  // namespace quantd

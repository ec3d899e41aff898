// The profiles of configs/profiles as compiled into the binary (written by embed_texts.cmake).
#pragma once

namespace quantd {

struct BuiltInProfile {
  const char* name;
  const char* yaml;
};
extern const BuiltInProfile kBuiltInProfiles[];
extern const int kNumBuiltInProfiles;

}  // namespace quantd

// Test helpers: options for LoadModel, and a load that must fail without leaving memory behind.
// Header-only.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "engine/load.h"
#include "kernels/ref/ref_backend.h"

namespace quantd::testing_support {

inline const std::filesystem::path kModels = std::filesystem::path(QUANTD_TEST_DATA) / "models";
inline const std::filesystem::path kDemo =
    std::filesystem::path(QUANTD_SOURCE_DIR) / "demo" / "model";

/// Without a profile: the checkpoint as it is.
inline LoadOptions OptionsFor(const std::filesystem::path& dir) {
  LoadOptions options;
  options.model_dir = dir;
  options.profile_given = false;
  options.max_rows = 16;
  options.max_logit_rows = 16;
  return options;
}

/// Under a shipped profile, or one given as YAML.
inline LoadOptions OptionsFor(const std::filesystem::path& dir, const std::string& profile) {
  LoadOptions options = OptionsFor(dir);
  options.profile_given = true;
  auto loaded = profile.find(':') == std::string::npos ? LoadProfile(profile)
                                                       : ParseProfile(profile, "test.yaml");
  EXPECT_TRUE(loaded.ok()) << loaded.status();
  options.profile = *loaded;
  return options;
}

inline absl::Status TryLoad(const LoadOptions& options) {
  const auto backend = CreateRefBackend();
  const absl::Status status = LoadModel(*backend, options).status();
  EXPECT_EQ(backend->memory().Total(), 0) << "a failed load leaves memory behind";
  return status;
}

}  // namespace quantd::testing_support

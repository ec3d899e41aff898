// Validate: every fault of a server's configuration, its profile, its model folder and the device
// they are for, at once and before anything is loaded.
//
// What `quantd validate` says, for people and for CI. Reads what `serve` reads before the weights:
// the configuration, the profile, config.json, the headers of *.safetensors and the tokenizer's
// files. A fault ends only the checks that depend on what is faulty. Allocates nothing for the
// model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "server/findings.h"

namespace quantd {

struct ValidateOptions {
  std::string config;                  // YAML file, as of `serve`; empty: overrides alone
  std::vector<std::string> overrides;  // "key=value"
  /// Of the device, which need not be here (PlanDeviceFor); 0: what this machine has free.
  int64_t memory_bytes = 0;
};

/// Errors, which `serve` would refuse, before warnings, which it would take. Empty: all is well.
std::vector<Finding> Validate(const ValidateOptions& options);

}  // namespace quantd

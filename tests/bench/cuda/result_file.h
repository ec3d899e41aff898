// ResultFile: what one stage measured on one device, inside that device's JSON file.
//
//   {"device": "NVIDIA H100 80GB HBM3",
//    "stages": {"bench": {"program": "5f0c...", "quick": false, "items": {"linear/...": {...}}}}}
//
// Items of another program (the hash of the executable) are forgotten: a result belongs to the code
// that made it. Written to a temporary file that is renamed, so that a reader never sees half of
// it.
#pragma once

#include <filesystem>
#include <string>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"

namespace quantd::gpu {

class ResultFile {
 public:
  /// The file of `device` in `folder`, which is made if need be. DATA_LOSS when a file of that name
  /// is not JSON, UNAVAILABLE when the folder cannot be written.
  static absl::StatusOr<ResultFile> Open(const std::filesystem::path& folder,
                                         const std::string& device, const std::string& stage,
                                         bool quick, bool fresh);

  bool Has(const std::string& item) const;
  nlohmann::json Get(const std::string& item) const;
  const nlohmann::json& items() const;
  /// Items of another stage of the same device; an empty object when it did not run.
  nlohmann::json ItemsOf(const std::string& stage) const;
  /// Stores and writes.
  absl::Status Put(const std::string& item, nlohmann::json value);
  const std::filesystem::path& path() const { return path_; }

 private:
  ResultFile(std::filesystem::path path, std::string stage)
      : path_(std::move(path)), stage_(std::move(stage)) {}
  absl::Status Write() const;

  std::filesystem::path path_;
  std::string stage_;
  nlohmann::json root_;
};

/// Which code makes results: a hash of this program's file.
std::string BuildOfThisProgram();

/// "NVIDIA H100 80GB HBM3" -> "nvidia-h100-80gb-hbm3".
std::string FileNameOf(const std::string& device);

}  // namespace quantd::gpu

// Checkpoint: the tensors of a Hugging Face model folder, mapped read-only; WriteSafetensors: the
// inverse.
//
// The first thing loading touches. A view stays valid as long as its Checkpoint. Reading is
// thread-safe. A file that is cut short while it is mapped kills the process (SIGBUS); serve from
// storage that nobody rewrites in place.
//
//   ASSIGN_OR_RETURN(auto checkpoint, Checkpoint::Open(dir));
//   const StoredTensor* w = checkpoint->Find("model.norm.weight");
#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/weights/files.h"
#include "engine/weights/safetensors_header.h"

namespace quantd {

struct StoredTensor {
  StoredDType dtype = StoredDType::kU8;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  // not necessarily aligned to its element
  size_t file = 0;                  // index of its shard
};

class Checkpoint {
 public:
  /// `dir`/model.safetensors, or the shards that `dir`/model.safetensors.index.json names.
  /// NOT_FOUND when there is neither, DATA_LOSS naming file, tensor and fault.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::filesystem::path& dir);
  /// One file of any name.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> OpenFile(const std::filesystem::path& file);

  /// nullptr when there is no such tensor.
  const StoredTensor* Find(std::string_view name) const;
  const std::map<std::string, StoredTensor, std::less<>>& tensors() const { return tensors_; }
  size_t num_files() const { return files_.size(); }
  const std::string& file_name(size_t file) const { return files_[file].name(); }
  /// The __metadata__ of one file.
  const std::map<std::string, std::string>& metadata(size_t file) const { return metadata_[file]; }
  int64_t total_bytes() const { return total_bytes_; }  // of all tensors

  /// Gives a tensor's pages back once it has been packed, so that loading holds one matrix, not the
  /// model.
  void DropPages(const StoredTensor& tensor) const;

 private:
  Checkpoint() = default;
  absl::Status Add(const std::filesystem::path& path);

  std::vector<MappedFile> files_;
  std::vector<std::map<std::string, std::string>> metadata_;
  std::map<std::string, StoredTensor, std::less<>> tensors_;
  int64_t total_bytes_ = 0;
};

struct NamedTensor {
  std::string name;
  StoredDType dtype = StoredDType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
};

/// Writes a file others can read, replacing `path` at once when it is complete. INVALID_ARGUMENT
/// when a shape contradicts its data or a name occurs twice, UNAVAILABLE when the file cannot be
/// written.
absl::Status WriteSafetensors(const std::filesystem::path& path,
                              std::span<const NamedTensor> tensors,
                              const std::map<std::string, std::string>& metadata = {});

}  // namespace quantd

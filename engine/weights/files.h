// Reading files of a model folder: small ones as text, weights by read-only mapping.
//
// Symbolic links are followed, to regular files only: Hugging Face's cache keeps a model folder as
// links into ../../blobs. FIFOs, devices and folders are refused without blocking.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace quantd {

/// The whole file. NOT_FOUND when there is none, DATA_LOSS when it is not a regular file or larger
/// than `max_bytes`.
absl::StatusOr<std::string> ReadTextFile(const std::filesystem::path& path, int64_t max_bytes);

/// A regular file mapped read-only. Move-only; unmapped on destruction.
class MappedFile {
 public:
  /// Errors as ReadTextFile's.
  static absl::StatusOr<MappedFile> Open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& name() const { return name_; }  // without its folder, for messages
  /// Gives the whole pages within [begin, end) back to the system, from this process and its page
  /// cache. Reading them again works, from disk.
  void DropPages(size_t begin, size_t end) const;

 private:
  MappedFile() = default;
  void Close();

  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int fd_ = -1;
  std::string name_;
};

}  // namespace quantd

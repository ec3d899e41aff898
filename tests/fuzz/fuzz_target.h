// One fuzz target a file: FUZZ_TARGET(name) { ... } over `bytes`.
//
// Compiled by clang with libFuzzer (preset `fuzz`) each file is a program of its own. Without, all
// of them are in one table, and fuzz_corpus_test runs every stored input through them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/check.h"

namespace quantd::fuzz {

using Bytes = std::span<const uint8_t>;

inline std::string Text(Bytes bytes) { return {bytes.begin(), bytes.end()}; }

/// Takes values off the front of an input; zeros when there is nothing left.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}
  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t value = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return value;
  }
  Bytes Rest() const { return bytes_; }

 private:
  Bytes bytes_;
};

/// A folder of this process in memory (where /dev/shm is), for what is read from files only.
class Folder {
 public:
  Folder();
  ~Folder();
  const std::filesystem::path& path() const { return path_; }
  void Write(const std::string& name, std::string_view content) const;

 private:
  std::filesystem::path path_;
};

struct Target {
  const char* name;
  void (*run)(Bytes);
};
/// Every target of this program.
std::vector<Target>& Targets();

}  // namespace quantd::fuzz

#ifdef QUANTD_LIBFUZZER
#define FUZZ_TARGET(name)                                                   \
  static void Fuzz_##name(::quantd::fuzz::Bytes bytes);                     \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    Fuzz_##name({data, size});                                              \
    return 0;                                                               \
  }                                                                         \
  static void Fuzz_##name(::quantd::fuzz::Bytes bytes)
#else
#define FUZZ_TARGET(name)                                                \
  static void Fuzz_##name(::quantd::fuzz::Bytes bytes);                  \
  [[maybe_unused]] static const bool kRegistered_##name =                \
      (::quantd::fuzz::Targets().push_back({#name, Fuzz_##name}), true); \
  static void Fuzz_##name(::quantd::fuzz::Bytes bytes)
#endif

#include "tests/fuzz/fuzz_target.h"

#include <unistd.h>

#include <fstream>

namespace quantd::fuzz {

Folder::Folder() {
  const std::filesystem::path memory = "/dev/shm";
  std::error_code error;
  const auto parent = std::filesystem::is_directory(memory, error)
                          ? memory
                          : std::filesystem::temp_directory_path();
  std::string name = (parent / "quantd_fuzz_XXXXXX").string();
  QUANTD_CHECK(mkdtemp(name.data()) != nullptr, "no folder in {}", parent.string());
  path_ = name;
}

Folder::~Folder() {
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

void Folder::Write(const std::string& name, std::string_view content) const {
  std::ofstream file(path_ / name, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  QUANTD_CHECK(file.good(), "cannot write {}", (path_ / name).string());
}

std::vector<Target>& Targets() {
  static std::vector<Target> targets;
  return targets;
}

}  // namespace quantd::fuzz

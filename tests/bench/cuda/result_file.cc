#include "tests/bench/cuda/result_file.h"

#include <cctype>
#include <fstream>
#include <vector>

#include "kernels/status.h"

namespace quantd::gpu {
using nlohmann::json;

std::string BuildOfThisProgram() {
  static const std::string hash = [] {  // FNV-1a
    std::ifstream in("/proc/self/exe", std::ios::binary);
    uint64_t h = 0xcbf29ce484222325u;
    std::vector<char> chunk(1 << 20);
    while (in) {
      in.read(chunk.data(), static_cast<std::streamsize>(chunk.size()));
      for (std::streamsize i = 0; i < in.gcount(); ++i) {
        h = (h ^ static_cast<uint8_t>(chunk[static_cast<size_t>(i)])) * 0x100000001b3u;
      }
    }
    return fmt::format("{:016x}", h);
  }();
  return hash;
}

std::string FileNameOf(const std::string& device) {
  std::string name;
  for (const char c : device) {
    const auto letter = static_cast<unsigned char>(c);
    if (std::isalnum(letter) != 0) {
      name += static_cast<char>(std::tolower(letter));
    } else if (!name.empty() && name.back() != '-') {
      name += '-';
    }
  }
  while (!name.empty() && name.back() == '-') name.pop_back();
  return name.empty() ? "unnamed" : name;
}

absl::StatusOr<ResultFile> ResultFile::Open(const std::filesystem::path& folder,
                                            const std::string& device, const std::string& stage,
                                            bool quick, bool fresh) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return Unavailable("{}: {}", folder.string(), error.message());
  ResultFile file(folder / (FileNameOf(device) + ".json"), stage);
  if (std::ifstream in(file.path_); in) {
    file.root_ = json::parse(in, nullptr, /*allow_exceptions=*/false);
    if (!file.root_.is_object())
      return DataLoss("{}: not a JSON object; move it away", file.path_.string());
  }
  file.root_["device"] = device;
  json& own = file.root_["stages"][stage];
  const std::string program = BuildOfThisProgram();
  if (fresh || !own.is_object() || own.value("program", "") != program ||
      own.value("quick", false) != quick || !own.contains("items")) {
    own = {{"program", program}, {"quick", quick}, {"items", json::object()}};
  }
  RETURN_IF_ERROR(file.Write());
  return file;
}

const nlohmann::json& ResultFile::items() const {
  return root_.at("stages").at(stage_).at("items");
}
bool ResultFile::Has(const std::string& item) const { return items().contains(item); }
nlohmann::json ResultFile::Get(const std::string& item) const { return items().at(item); }

nlohmann::json ResultFile::ItemsOf(const std::string& stage) const {
  const json& stages = root_.at("stages");
  if (!stages.contains(stage) || !stages.at(stage).contains("items")) return json::object();
  return stages.at(stage).at("items");
}

absl::Status ResultFile::Put(const std::string& item, nlohmann::json value) {
  root_["stages"][stage_]["items"][item] = std::move(value);
  return Write();
}

absl::Status ResultFile::Write() const {
  const std::filesystem::path part = path_.string() + ".part";
  std::ofstream out(part);
  out << root_.dump(0) << "\n";
  out.close();
  std::error_code error;
  if (out) std::filesystem::rename(part, path_, error);
  if (!out || error) return Unavailable("{}: could not be written", path_.string());
  return absl::OkStatus();
}

}  // namespace quantd::gpu

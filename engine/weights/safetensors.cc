#include "engine/weights/safetensors.h"

#include <nlohmann/json.hpp>
#include <set>

#include "engine/weights/json_check.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr int64_t kMaxIndexBytes = 64 << 20;  // the largest known model's is below 10 MB
constexpr size_t kMaxShards = 4096;           // each takes a file descriptor and a mapping

// weight_map of the index: tensor name -> shard.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::filesystem::path& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxIndexBytes));
  RETURN_IF_ERROR(CheckJson(text, kIndex));
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    return DataLoss("{}: no weight_map object", kIndex);
  }
  std::map<std::string, std::string> map;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    if (!shard.is_string()) return DataLoss("{}: weight_map[\"{}\"] is not a string", kIndex, name);
    const std::string file = shard.get<std::string>();
    if (file.empty() || file == "." || file == ".." || file.find('/') != std::string::npos ||
        file.find('\0') != std::string::npos) {
      return DataLoss(
          "{}: weight_map[\"{}\"] is \"{}\", not the name of a file in the model's folder", kIndex,
          name, file);
    }
    map[name] = file;
  }
  if (map.empty()) return DataLoss("{}: weight_map is empty", kIndex);
  return map;
}

bool Exists(const std::filesystem::path& path) {
  std::error_code error;
  return std::filesystem::exists(std::filesystem::symlink_status(path, error));
}

/// What a folder without safetensors has in their place, and what to do about it: the end of a
/// message.
std::string InsteadOf(const std::filesystem::path& dir) {
  std::set<std::string> names;  // in order, so that a message does not depend on the file system
  std::error_code error;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end;
       it.increment(error)) {
    names.insert(it->path().filename().string());
  }
  const auto first = [&](std::initializer_list<std::string_view> suffixes) -> std::string {
    for (const std::string& name : names) {
      for (const std::string_view suffix : suffixes) {
        if (name.size() > suffix.size() && name.ends_with(suffix)) return name;
      }
    }
    return "";
  };
  if (const std::string name = first({".safetensors"}); !name.empty()) {
    return fmt::format("; there is {}: name it {} if it is the whole model", name, kSingle);
  }
  if (const std::string name = first({".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"});
      !name.empty()) {
    return fmt::format(
        "; {} is not read, since a pickle can run code: convert it with transformers, "
        "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)",
        name);
  }
  if (const std::string name = first({".gguf"}); !name.empty()) {
    return fmt::format(
        "; {} is not read: take the safetensors folder it was made from, or convert it with "
        "transformers, AutoModelForCausalLM.from_pretrained(folder, gguf_file=\"{}\")"
        ".save_pretrained(new_folder)",
        name, name);
  }
  return "";
}

}  // namespace

absl::Status Checkpoint::Add(const std::filesystem::path& path) {
  auto opened = MappedFile::Open(path);
  if (!opened.ok()) return opened.status();
  files_.push_back(std::move(opened).value());
  const MappedFile& file = files_.back();
  ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensors(file.bytes(), file.name()));
  for (auto& [name, entry] : header.tensors) {
    StoredTensor tensor{entry.dtype, std::move(entry.shape),
                        file.bytes().subspan(entry.begin, entry.end - entry.begin),
                        files_.size() - 1};
    const auto [it, inserted] = tensors_.emplace(name, std::move(tensor));
    if (!inserted) {
      return DataLoss("tensor \"{}\" is in two files: {} and {}", name, file_name(it->second.file),
                      file.name());
    }
    total_bytes_ += static_cast<int64_t>(entry.end - entry.begin);
  }
  metadata_.push_back(std::move(header.metadata));
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::OpenFile(
    const std::filesystem::path& file) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  RETURN_IF_ERROR(checkpoint->Add(file));
  return checkpoint;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::filesystem::path& dir) {
  if (Exists(dir / kSingle)) return OpenFile(dir / kSingle);
  if (!Exists(dir / kIndex)) {
    return NotFound("{}: neither {} nor {}{}", dir.string(), kSingle, kIndex, InsteadOf(dir));
  }
  ASSIGN_OR_RETURN(const auto weight_map, ReadIndex(dir / kIndex));
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  if (shards.size() > kMaxShards)
    return DataLoss("{}: {} shards, at most {}", kIndex, shards.size(), kMaxShards);

  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint());
  for (const std::string& shard : shards) {
    const absl::Status status = checkpoint->Add(dir / shard);
    if (absl::IsNotFound(status))
      return DataLoss("{}: names \"{}\", which does not exist", kIndex, shard);
    RETURN_IF_ERROR(status);
  }
  for (const auto& [name, shard] : weight_map) {
    const StoredTensor* tensor = checkpoint->Find(name);
    if (tensor == nullptr || checkpoint->file_name(tensor->file) != shard) {
      return DataLoss("{}: tensor \"{}\" is not in {}", kIndex, name, shard);
    }
  }
  for (const auto& [name, tensor] : checkpoint->tensors()) {
    if (weight_map.count(name) == 0) {
      return DataLoss("{}: does not name tensor \"{}\" of {}", kIndex, name,
                      checkpoint->file_name(tensor.file));
    }
  }
  return checkpoint;
}

const StoredTensor* Checkpoint::Find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

void Checkpoint::DropPages(const StoredTensor& tensor) const {
  const MappedFile& file = files_[tensor.file];
  const size_t begin = static_cast<size_t>(tensor.data.data() - file.bytes().data());
  file.DropPages(begin, begin + tensor.data.size());
}

}  // namespace quantd

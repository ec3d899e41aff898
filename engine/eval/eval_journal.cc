#include "engine/eval/eval_journal.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/eval/eval_json.h"
#include "engine/weights/files.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using nlohmann::json;

constexpr char kIdentity[] = "quantd_eval";
constexpr int64_t kMaxBytes = int64_t{16} << 30;  // twenty bytes a token and profile

}  // namespace

EvalJournal::~EvalJournal() {
  if (file_ != nullptr) std::fclose(file_);
}

absl::StatusOr<std::unique_ptr<EvalJournal>> EvalJournal::Open(const std::string& path,
                                                               const Identity& identity) {
  std::unique_ptr<EvalJournal> journal(new EvalJournal());
  if (path.empty()) return journal;
  journal->path_ = path;
  std::error_code error;
  const bool exists = std::filesystem::exists(path, error);
  int64_t valid_bytes = 0;
  if (exists) {
    RETURN_IF_ERROR(journal->Read(path, identity, &valid_bytes));
    std::filesystem::resize_file(path, static_cast<uintmax_t>(valid_bytes), error);
  }
  journal->file_ = std::fopen(path.c_str(), "ae");
  if (journal->file_ == nullptr || error) {
    return Unavailable("{}: cannot be written: {}", path,
                       error ? error.message() : std::strerror(errno));
  }
  if (valid_bytes == 0) RETURN_IF_ERROR(journal->Write(json{{kIdentity, identity}}.dump()));
  return journal;
}

absl::Status EvalJournal::Read(const std::string& path, const Identity& identity,
                               int64_t* valid_bytes) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kMaxBytes));
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find('\n', begin);
    if (end == std::string::npos) break;  // cut off
    const std::string where = fmt::format("{}: line {}", path, ++number);
    const json line = json::parse(text.begin() + static_cast<ptrdiff_t>(begin),
                                  text.begin() + static_cast<ptrdiff_t>(end), nullptr,
                                  /*allow_exceptions=*/false);
    if (!line.is_object()) return DataLoss("{}: not an object", where);
    if (number == 1) {
      if (!line.contains(kIdentity) || !line[kIdentity].is_object()) {
        return DataLoss("{}: not a journal of quantd eval", where);
      }
      for (const auto& [key, value] : identity) {
        const json was = line[kIdentity].value(key, json());
        if (was == json(value)) continue;
        return FailedPrecondition(
            "{} is of another evaluation: {} was {} and is \"{}\"; name another file, or remove it",
            path, key, was.dump(), value);
      }
    } else if (line.contains("profile") && line["profile"].is_string() && line.contains("score")) {
      ASSIGN_OR_RETURN(WindowScore score, WindowScoreFromJson(line["score"].dump(), where));
      const int64_t window = score.window;
      profiles_[line["profile"].get<std::string>()].windows.insert_or_assign(window,
                                                                             std::move(score));
    } else if (line.contains("facts")) {
      ASSIGN_OR_RETURN(ProfileFacts facts, ProfileFactsFromJson(line["facts"].dump(), where));
      const std::string hash = facts.hash;
      profiles_[hash].facts = std::move(facts);
    } else {
      return DataLoss("{}: neither a score nor facts", where);
    }
    begin = end + 1;
    *valid_bytes = static_cast<int64_t>(begin);
  }
  return absl::OkStatus();
}

absl::Status EvalJournal::Add(const std::string& hash, WindowScore score) {
  RETURN_IF_ERROR(Write(fmt::format(R"({{"profile":"{}","score":{}}})", hash, ToJson(score))));
  const int64_t window = score.window;
  profiles_[hash].windows.insert_or_assign(window, std::move(score));
  return absl::OkStatus();
}

absl::Status EvalJournal::Add(ProfileFacts facts) {
  RETURN_IF_ERROR(Write(fmt::format(R"({{"facts":{}}})", ToJson(facts))));
  const std::string hash = facts.hash;
  profiles_[hash].facts = std::move(facts);
  return absl::OkStatus();
}

absl::Status EvalJournal::Write(const std::string& line) {
  if (file_ == nullptr) return absl::OkStatus();
  const bool written = std::fwrite(line.data(), 1, line.size(), file_) == line.size() &&
                       std::fputc('\n', file_) != EOF && std::fflush(file_) == 0;
  if (!written) return Unavailable("{}: cannot be written: {}", path_, std::strerror(errno));
  return absl::OkStatus();
}

}  // namespace quantd

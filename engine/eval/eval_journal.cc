#include "engine/eval/eval_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "engine/eval/eval_json.h"
#include "engine/weights/files.h"
#include "engine/weights/json_check.h"
#include "engine/weights/json_dump.h"
#include "kernels/status.h"

namespace quantd {
namespace {

using nlohmann::json;

constexpr char kIdentity[] = "quantd_eval";
constexpr int64_t kMaxBytes = int64_t{16} << 30;  // twenty bytes a token and profile

absl::StatusOr<json> ParseLine(const std::string& line, const std::string& where) {
  RETURN_IF_ERROR(CheckJson(line, where));
  json value = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object()) return DataLoss("{}: not an object", where);
  return value;
}

}  // namespace

EvalJournal::~EvalJournal() {
  if (file_ >= 0) ::close(file_);
}

absl::StatusOr<std::unique_ptr<EvalJournal>> EvalJournal::Open(const std::string& path,
                                                               const Identity& identity) {
  std::unique_ptr<EvalJournal> journal(new EvalJournal());
  if (path.empty()) return journal;
  journal->path_ = path;
  journal->file_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  struct stat facts {};
  if (journal->file_ < 0 || ::fstat(journal->file_, &facts) != 0) return journal->CannotWrite();
  if (!S_ISREG(facts.st_mode)) return Unavailable("{}: not a regular file", path);
  // Two writers would cut each other's lines.
  if (::flock(journal->file_, LOCK_EX | LOCK_NB) != 0) {
    return Unavailable("{}: in use by another evaluation", path);
  }
  ASSIGN_OR_RETURN(const int64_t valid_bytes, journal->Read(identity));
  if (::ftruncate(journal->file_, valid_bytes) != 0 ||
      ::lseek(journal->file_, valid_bytes, SEEK_SET) < 0) {
    return journal->CannotWrite();
  }
  if (valid_bytes == 0) RETURN_IF_ERROR(journal->Write(DumpJson(json{{kIdentity, identity}})));
  return journal;
}

// Fills profiles_; the bytes of whole lines.
absl::StatusOr<int64_t> EvalJournal::Read(const Identity& identity) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path_, kMaxBytes));
  int64_t number = 0;
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string where = fmt::format("{}: line {}", path_, ++number);
    ASSIGN_OR_RETURN(const json line, ParseLine(text.substr(begin, end - begin), where));
    if (number == 1) {
      RETURN_IF_ERROR(CheckIdentity(DumpJson(line.value(kIdentity, json())), identity));
    } else if (line.contains("score") && line.contains("profile") && line["profile"].is_string()) {
      ASSIGN_OR_RETURN(WindowScore score, WindowScoreFromJson(DumpJson(line["score"]), where));
      const int64_t window = score.window;
      profiles_[line["profile"].get<std::string>()].windows.insert_or_assign(window,
                                                                             std::move(score));
    } else if (line.contains("facts")) {
      ASSIGN_OR_RETURN(ProfileFacts facts, ProfileFactsFromJson(DumpJson(line["facts"]), where));
      const std::string hash = facts.hash;
      profiles_[hash].facts = std::move(facts);
    } else {
      return DataLoss("{}: neither a score nor facts", where);
    }
  }
  // A line that was cut off is dropped; but a file without a whole one must have begun as ours do.
  const std::string first = DumpJson(json{{kIdentity, identity}});
  if (number == 0 && text != first.substr(0, text.size())) {
    return DataLoss("{}: line 1: not a journal of quantd eval", path_);
  }
  return static_cast<int64_t>(begin);
}

absl::Status EvalJournal::CheckIdentity(const std::string& found, const Identity& identity) const {
  const json was = json::parse(found, nullptr, /*allow_exceptions=*/false);
  if (!was.is_object()) return DataLoss("{}: line 1: not a journal of quantd eval", path_);
  const json is = json::parse(DumpJson(json(identity)));
  for (const auto& [key, value] : is.items()) {
    const auto it = was.find(key);
    if (it != was.end() && *it == value) continue;
    return FailedPrecondition(
        "{} is of another evaluation: {} was {} and is {}; name another file, or remove it", path_,
        key, it == was.end() ? "not noted" : DumpJson(*it), DumpJson(value));
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

absl::Status EvalJournal::Write(std::string line) {
  if (file_ < 0) return absl::OkStatus();
  line += '\n';
  for (size_t done = 0; done < line.size();) {
    const ssize_t written = ::write(file_, line.data() + done, line.size() - done);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return CannotWrite();
    done += static_cast<size_t>(written);
  }
  return absl::OkStatus();
}

absl::Status EvalJournal::CannotWrite() const {
  return Unavailable("{}: cannot be written: {}", path_, std::strerror(errno));
}

}  // namespace quantd

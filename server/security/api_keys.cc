#include "server/security/api_keys.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>
#include <openssl/sha.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <set>

#include "engine/admission.h"
#include "engine/weights/nearest.h"
#include "kernels/fault_list.h"
#include "kernels/status.h"
#include "server/read_input.h"

namespace quantd {
namespace {

constexpr std::string_view kFields[] = {
    "name",   "sha256",       "models", "max_concurrent_requests",
    "weight", "min_priority", "admin",  "tokens_per_minute"};

bool IsKeyName(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}
constexpr char kNameRule[] = "1 to 64 letters, digits, '.', '_', '-'";

std::optional<Sha256Digest> ParseDigest(const std::string& hex) {
  Sha256Digest digest;
  if (hex.size() != 2 * digest.size()) return std::nullopt;
  const auto value = [](char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  for (size_t i = 0; i < digest.size(); ++i) {
    const int high = value(hex[2 * i]), low = value(hex[2 * i + 1]);
    if (high < 0 || low < 0) return std::nullopt;
    digest[i] = static_cast<uint8_t>(16 * high + low);
  }
  return digest;
}

// One entry of the list; `where` names it.
class EntryReader {
 public:
  EntryReader(const YAML::Node& node, const std::string& where, FaultList& faults)
      : node_(node), where_(where), faults_(faults) {}

  ApiKey Read() {
    ApiKey key;
    std::set<std::string> seen;
    for (const auto& field : node_) {
      const std::string name = field.first.Scalar();
      if (!seen.insert(name).second) faults_.Add("{}: {} is given twice", where_, name);
      if (std::find(std::begin(kFields), std::end(kFields), name) != std::end(kFields)) continue;
      faults_.Add("{}: unknown field {}; the nearest known one is {}", where_, name,
                  NearestName(name, kFields));
    }
    Get("name", &key.name);
    if (!IsKeyName(key.name)) {
      faults_.Add("{}: name is \"{}\", allowed: {}", where_, key.name, kNameRule);
    }
    std::string hex;
    Get("sha256", &hex);
    if (const auto digest = ParseDigest(hex); digest.has_value()) {
      key.sha256 = *digest;
    } else {
      // Not quoted: it might be the key itself.
      faults_.Add("{}: sha256 is not 64 digits 0-9 a-f, but has {} characters", where_, hex.size());
    }
    if (const YAML::Node models = node_["models"]; models) {
      if (!models.IsSequence() || models.size() == 0) {
        faults_.Add("{}: models must be a list of served names, or be left out for all", where_);
      } else {
        Get("models", &key.models);
      }
    }
    Get("max_concurrent_requests", &key.max_concurrent_requests);
    Get("tokens_per_minute", &key.tokens_per_minute);
    Get("weight", &key.weight);
    Get("min_priority", &key.min_priority);
    Get("admin", &key.admin);
    const auto least = [&](const char* field, auto value, auto min) {
      if (value < min) faults_.Add("{}: {} is {}, allowed: {} or more", where_, field, value, min);
    };
    least("max_concurrent_requests", key.max_concurrent_requests, 0);
    least("tokens_per_minute", key.tokens_per_minute, 0);
    if (!(key.weight >= 0.001 && key.weight <= 1000)) {
      faults_.Add("{}: weight is {}, allowed: 0.001 to 1000", where_, key.weight);
    }
    return key;
  }

 private:
  template <typename T>
  void Get(const char* field, T* out) {
    const YAML::Node node = node_[field];
    if (!node) return;
    try {
      *out = node.as<T>();
    } catch (const YAML::Exception&) {
      faults_.Add("{}: {} is not of its kind", where_, field);
    }
  }

  const YAML::Node& node_;
  const std::string& where_;
  FaultList& faults_;
};

std::string Hex(const Sha256Digest& digest) {
  std::string out;
  for (const uint8_t byte : digest) out += fmt::format("{:02x}", byte);
  return out;
}

}  // namespace

Sha256Digest Sha256(std::string_view bytes) {
  Sha256Digest digest;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), digest.data());
  return digest;
}

absl::StatusOr<std::vector<ApiKey>> ParseApiKeys(const std::string& yaml,
                                                 const std::string& source) {
  FaultList faults;
  std::vector<ApiKey> keys;
  try {
    const YAML::Node root = YAML::Load(yaml);
    if (!root.IsMap() || root.size() != 1 || !root["keys"] || !root["keys"].IsSequence()) {
      return InvalidArgument("{}: must be a mapping with one list, keys", source);
    }
    std::set<std::string> names;
    std::set<Sha256Digest> digests;
    for (const YAML::Node& node : root["keys"]) {
      const std::string where = fmt::format("{}: keys[{}]", source, keys.size());
      if (!node.IsMap()) return InvalidArgument("{} must be a mapping", where);
      ApiKey& key = keys.emplace_back(EntryReader(node, where, faults).Read());
      if (!names.insert(key.name).second) faults.Add("{}: name {} is there twice", where, key.name);
      if (!digests.insert(key.sha256).second) {
        faults.Add("{}: sha256 is there twice", where);
      }
    }
  } catch (const YAML::Exception& e) {
    return InvalidArgument("{}: line {}: {}", source, e.mark.line + 1, e.msg);
  }
  if (keys.empty()) faults.Add("{}: has no keys, so nobody could call", source);
  RETURN_IF_ERROR(faults.ToStatus(absl::StatusCode::kInvalidArgument));
  return keys;
}

absl::StatusOr<std::vector<ApiKey>> ReadApiKeys(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadRegularFile(path, path));
  return ParseApiKeys(text, path);
}

ApiKey KeyUse::key() const {
  std::lock_guard lock(mutex_);
  return key_;
}

void KeyUse::Refill(Clock::time_point now) {
  const auto minute = static_cast<double>(key_.tokens_per_minute);
  if (!filled_.has_value()) {
    tokens_ = minute;
  } else {
    tokens_ += minute * std::chrono::duration<double>(now - *filled_).count() / 60;
  }
  tokens_ = std::min(tokens_, minute);
  filled_ = now;
}

absl::Status KeyUse::Begin(int32_t outputs, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  if (key_.max_concurrent_requests > 0 && outputs > key_.max_concurrent_requests) {
    return InvalidArgument(
        "n is {}, allowed: at most the {} requests that the key {} may have at once", outputs,
        key_.max_concurrent_requests, key_.name);
  }
  if (key_.max_concurrent_requests > 0 && counts_.live + outputs > key_.max_concurrent_requests) {
    ++counts_.refused;
    return WithRetryAfter(ResourceExhausted("the key {} has {} requests at once, allowed: {}",
                                            key_.name, counts_.live, key_.max_concurrent_requests),
                          0);
  }
  if (key_.tokens_per_minute > 0) {
    Refill(now);
    if (tokens_ <= 0) {
      ++counts_.refused;
      const double wait = (1 - tokens_) * 60 / static_cast<double>(key_.tokens_per_minute);
      return WithRetryAfter(
          ResourceExhausted("the key {} has used its tokens, allowed: {} a minute", key_.name,
                            key_.tokens_per_minute),
          wait);
    }
  }
  counts_.requests += outputs;
  counts_.live += outputs;
  return absl::OkStatus();
}

void KeyUse::End(int32_t outputs) {
  std::lock_guard lock(mutex_);
  counts_.live -= outputs;
}

void KeyUse::Charge(int64_t tokens, Clock::time_point now) {
  std::lock_guard lock(mutex_);
  counts_.tokens += tokens;
  if (key_.tokens_per_minute == 0) return;
  Refill(now);
  tokens_ -= static_cast<double>(tokens);
}

KeyUse::Counts KeyUse::counts() const {
  std::lock_guard lock(mutex_);
  return counts_;
}

void KeyUse::Reset(ApiKey key) {
  std::lock_guard lock(mutex_);
  key_ = std::move(key);
}

absl::StatusOr<std::unique_ptr<KeyRing>> KeyRing::Load(const std::string& path) {
  std::unique_ptr<KeyRing> ring(new KeyRing(path));
  RETURN_IF_ERROR(ring->Reload().status());
  return ring;
}

absl::StatusOr<bool> KeyRing::Reload() {
  std::lock_guard reload_lock(reload_mutex_);
  ASSIGN_OR_RETURN(std::string text, ReadRegularFile(path_, path_));
  if (text == text_) return false;
  ASSIGN_OR_RETURN(std::vector<ApiKey> keys, ParseApiKeys(text, path_));
  text_ = std::move(text);
  Replace(std::move(keys));
  return true;
}

void KeyRing::Replace(std::vector<ApiKey> keys) {
  std::lock_guard lock(mutex_);
  keys_.clear();
  for (ApiKey& key : keys) {
    const Sha256Digest digest = key.sha256;
    std::shared_ptr<KeyUse>& use = uses_[key.name];
    if (use == nullptr) {
      use = std::make_shared<KeyUse>(std::move(key));
    } else {
      use->Reset(std::move(key));
    }
    keys_.emplace_back(digest, use);
  }
}

std::shared_ptr<KeyUse> KeyRing::Find(std::string_view presented) const {
  const Sha256Digest digest = Sha256(presented);
  std::shared_ptr<KeyUse> found;
  std::lock_guard lock(mutex_);
  for (const auto& [known, use] : keys_) {
    if (CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0) found = use;
  }
  return found;
}

std::vector<std::shared_ptr<KeyUse>> KeyRing::All() const {
  std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<KeyUse>> out;
  for (const auto& [digest, use] : keys_) out.push_back(use);
  return out;
}

absl::StatusOr<NewApiKey> MakeApiKey(const std::string& name) {
  if (!IsKeyName(name)) return InvalidArgument("name is \"{}\", allowed: {}", name, kNameRule);
  std::array<uint8_t, 32> random;
  if (RAND_bytes(random.data(), static_cast<int>(random.size())) != 1) {
    return Internal("no random bytes are to be had");
  }
  static constexpr char kLetters[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  NewApiKey out;
  out.key = "qd_";
  uint32_t bits = 0;
  int held = 0;
  for (const uint8_t byte : random) {
    bits = bits << 8 | byte;
    for (held += 8; held >= 6; held -= 6) out.key += kLetters[bits >> (held - 6) & 63];
  }
  out.key += kLetters[bits << (6 - held) & 63];
  out.entry = fmt::format("  - name: {}\n    sha256: {}\n", name, Hex(Sha256(out.key)));
  return out;
}

}  // namespace quantd

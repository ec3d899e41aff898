#include "engine/weights/json_check.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "kernels/fault_text.h"
#include "kernels/status.h"

namespace quantd {
namespace {

class JsonChecker : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit JsonChecker(int max_depth) : max_depth_(max_depth) {}

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return Push(); }
  bool start_array(std::size_t) override { return Push(); }
  bool end_object() override { return Pop(); }
  bool end_array() override { return Pop(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    fault_ = fmt::format("key \"{}\" occurs twice in one object", name);
    return false;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& e) override {
    fault_ = fmt::format("not valid JSON at byte {}: {}", position, ForeignWords(e.what()));
    return false;
  }

  const std::string& fault() const { return fault_; }

 private:
  bool Push() {
    keys_.emplace_back();
    if (static_cast<int>(keys_.size()) <= max_depth_) return true;
    fault_ = fmt::format("nested deeper than {} levels", max_depth_);
    return false;
  }
  bool Pop() {
    keys_.pop_back();
    return true;
  }

  const int max_depth_;
  std::vector<std::set<std::string>> keys_;  // of the objects being read, outermost first
  std::string fault_;
};

}  // namespace

absl::Status CheckJson(std::string_view text, const std::string& source, int max_depth) {
  JsonChecker checker(max_depth);
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &checker)) return absl::OkStatus();
  return DataLoss("{}: {}", source, checker.fault());
}

}  // namespace quantd

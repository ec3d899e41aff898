#include "server/findings.h"

#include <algorithm>
#include <array>
#include <utility>

#include "kernels/fault_list.h"
#include "kernels/fault_text.h"

namespace quantd {
namespace {

constexpr std::string_view kLayers = "layers.";

// "model.layers.*.mlp" of "model.layers.12.mlp".
std::string WithoutLayer(const std::string& text) {
  std::string out;
  size_t at = 0;
  for (size_t found; (found = text.find(kLayers, at)) != std::string::npos;) {
    const size_t first = found + kLayers.size();
    size_t end = first;
    while (end < text.size() && text[end] >= '0' && text[end] <= '9') ++end;
    out += text.substr(at, first - at);
    if (end > first) out += '*';
    at = end;
  }
  return out + text.substr(at);
}

// A file in front of a fault, "config.json" of "config.json: vocab_size: missing"; else empty.
std::string_view FileOf(std::string_view fault) {
  const std::string_view head = fault.substr(0, fault.find(": "));
  if (head.size() == fault.size()) return {};
  constexpr std::array<std::string_view, 6> kEndings = {".json", ".safetensors", ".yaml",
                                                        ".yml",  ".model",       ".jinja"};
  const bool is_file = std::any_of(kEndings.begin(), kEndings.end(),
                                   [&](std::string_view e) { return head.ends_with(e); });
  return is_file && head.find_first_of(" \"") == std::string_view::npos ? head : std::string_view();
}

}  // namespace

void FindingList::Add(Severity severity, const std::string& where, std::string_view fault,
                      const std::string& fix) {
  Finding finding{severity, where, "", ""};
  if (fault.starts_with(where + ": ")) fault.remove_prefix(where.size() + 2);
  if (const std::string_view file = FileOf(fault); !file.empty()) {
    finding.where = file;
    fault.remove_prefix(file.size() + 2);
    // A message names a file of a folder by its name; the folder is where we are.
    const bool inside = file.find('/') == std::string_view::npos && FileOf(where + ": ").empty();
    if (inside && !where.empty()) finding.where = where + "/" + finding.where;
  }
  FaultParts parts = SplitFault(fault);
  finding.what = std::move(parts.what);
  finding.fix = parts.fix.empty() ? fix : parts.fix;
  Add(std::move(finding));
}

void FindingList::Add(Finding finding) {
  std::string pattern = WithoutLayer(finding.what);
  for (Entry& entry : entries_) {
    const Finding& known = entry.finding;
    if (known.severity != finding.severity || known.where != finding.where ||
        entry.pattern != pattern) {
      continue;
    }
    if (known.what != finding.what) ++entry.layers;
    return;
  }
  entries_.push_back({std::move(finding), std::move(pattern), 1});
}

void FindingList::Add(Severity severity, const std::string& where, const absl::Status& status,
                      const std::string& fix) {
  for (const std::string& fault : FaultsOf(status)) Add(severity, where, fault, fix);
}

std::vector<Finding> FindingList::Take() {
  std::vector<Finding> findings;
  for (Entry& entry : entries_) {
    if (entry.layers > 1) {
      entry.finding.what = fmt::format("{} ({} times)", entry.pattern, entry.layers);
    }
    findings.push_back(std::move(entry.finding));
  }
  entries_.clear();
  std::stable_partition(findings.begin(), findings.end(),
                        [](const Finding& f) { return f.severity == Severity::kError; });
  return findings;
}

}  // namespace quantd

// docs/formats.md against the code: its table has every method and no other, names the profiles
// that quantize by it, and the fixtures it calls proof are there.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "engine/weights/methods/method.h"
#include "engine/weights/profile.h"

namespace quantd {
namespace {

std::vector<std::string> Split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) {
    const size_t first = part.find_first_not_of(' '), last = part.find_last_not_of(' ');
    parts.push_back(first == std::string::npos ? "" : part.substr(first, last - first + 1));
  }
  return parts;
}

struct Row {
  std::string import, on_load, proof;
};

/// The rows of the table under "## Methods", by quant_method.
std::map<std::string, Row> DocumentedMethods() {
  std::ifstream file(std::string(QUANTD_SOURCE_DIR) + "/docs/formats.md");
  std::map<std::string, Row> rows;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("## ", 0) == 0) inside = line == "## Methods";
    if (!inside || line.rfind("| ", 0) != 0) continue;
    const std::vector<std::string> cells = Split(line.substr(1), '|');
    if (cells.size() < 7 || cells[0] == "quant_method") continue;
    rows[cells[0]] = {cells[1], cells[2], cells[6]};
  }
  return rows;
}

TEST(FormatsPage, HasEveryMethodAndItsProfiles) {
  const std::map<std::string, Row> rows = DocumentedMethods();
  std::map<std::string, std::set<std::string>> profiles;  // by method
  for (const std::string& name : BuiltInProfiles()) {
    profiles[LoadProfile(name)->quantization.method].insert(name);
  }
  std::set<std::string> documented, registered;
  for (const auto& [name, row] : rows) documented.insert(name);
  for (const Method* m : Methods()) {
    const std::string name(m->name());
    registered.insert(name);
    if (!rows.contains(name)) continue;
    const Row& row = rows.at(name);
    if (!m->on_load()) {
      EXPECT_EQ(row.on_load.substr(0, 2), "no") << name;
      continue;
    }
    const std::vector<std::string> named = Split(row.on_load, ',');
    EXPECT_EQ(std::set<std::string>(named.begin(), named.end()), profiles[name]) << name;
  }
  EXPECT_EQ(documented, registered);
}

// Or docs/models.md does, of those that are there for their architecture.
TEST(FormatsPage, NamesEveryFixtureAsProof) {
  const std::filesystem::path models = std::filesystem::path(QUANTD_TEST_DATA) / "models";
  std::set<std::string> named, there;
  for (const auto& [name, row] : DocumentedMethods()) {
    for (const std::string& word : Split(row.proof, ' ')) {
      const std::string fixture = word.substr(0, word.find_first_of(",;"));
      if (std::filesystem::exists(models / fixture / "config.json")) named.insert(fixture);
    }
  }
  std::ifstream page(std::filesystem::path(QUANTD_SOURCE_DIR) / "docs" / "models.md");
  const std::string families{std::istreambuf_iterator<char>(page), {}};
  for (const auto& entry : std::filesystem::directory_iterator(models)) {
    const std::string fixture = entry.path().filename().string();
    const bool of_family = families.find("`" + fixture + "`") != std::string::npos;
    if (!of_family || named.contains(fixture)) there.insert(fixture);
  }
  EXPECT_EQ(named, there);
}

}  // namespace
}  // namespace quantd

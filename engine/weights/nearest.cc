#include "engine/weights/nearest.h"

#include <algorithm>
#include <numeric>
#include <vector>

namespace quantd {
namespace {

constexpr size_t kLongest = 64;  // names are short; a megabyte of garbage is not worth comparing

// Levenshtein distance with one row of the table.
size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substitute = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string_view NearestName(std::string_view name, std::span<const std::string_view> known) {
  const std::string_view text = name.substr(0, kLongest);
  std::string_view best;
  size_t best_distance = SIZE_MAX;
  for (std::string_view candidate : known) {
    const size_t distance = EditDistance(text, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

std::string_view NearName(std::string_view name, std::span<const std::string_view> known) {
  const std::string_view text = name.substr(0, kLongest);
  const std::string_view nearest = NearestName(text, known);
  const size_t allowed = std::max<size_t>(2, text.size() / 3);
  const size_t distance = EditDistance(text, nearest);
  return distance <= allowed && distance < text.size() ? nearest : std::string_view();
}

}  // namespace quantd

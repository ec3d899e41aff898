#include "engine/weights/methods/column_order.h"

#include <algorithm>
#include <numeric>

#include "kernels/status.h"

namespace quantd {

absl::StatusOr<std::vector<int32_t>> ColumnOrder(const std::vector<int32_t>& group_of, int64_t size,
                                                 const std::string& name) {
  const int64_t k = static_cast<int64_t>(group_of.size());
  const int64_t groups = (k + size - 1) / size;
  std::vector<int64_t> sizes(static_cast<size_t>(groups));
  for (size_t i = 0; i < group_of.size(); ++i) {
    if (group_of[i] < 0 || group_of[i] >= groups) {
      return DataLoss("tensor {}: element {} is {}, not one of {} groups", name, i, group_of[i],
                      groups);
    }
    ++sizes[static_cast<size_t>(group_of[i])];
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t expected = std::min(size, k - g * size);
    if (sizes[static_cast<size_t>(g)] == expected) continue;
    return Unimplemented(
        "tensor {}: group {} has {} inputs; groups of other than {} are not supported; instead: a "
        "checkpoint whose columns are in order (desc_act: false, actorder: weight)",
        name, g, sizes[static_cast<size_t>(g)], expected);
  }
  if (std::is_sorted(group_of.begin(), group_of.end())) return std::vector<int32_t>();
  std::vector<int32_t> columns(group_of.size());
  std::iota(columns.begin(), columns.end(), 0);
  std::stable_sort(columns.begin(), columns.end(), [&group_of](int32_t a, int32_t b) {
    return group_of[static_cast<size_t>(a)] < group_of[static_cast<size_t>(b)];
  });
  return columns;
}

void ReorderColumns(const std::vector<int32_t>& columns, std::vector<uint8_t>& codes) {
  const size_t k = columns.size();
  std::vector<uint8_t> row(k);
  for (size_t first = 0; first < codes.size(); first += k) {
    for (size_t c = 0; c < k; ++c) row[c] = codes[first + static_cast<size_t>(columns[c])];
    std::copy(row.begin(), row.end(), codes.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

}  // namespace quantd

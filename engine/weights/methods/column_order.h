// Columns whose groups are not neighbours (GPTQ's desc_act, compressed-tensors' actorder): which
// order makes them neighbours. Pure functions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace quantd {

/// `group_of` [k], tensor `name` of the checkpoint, is the group of each input; a group has `size`
/// inputs, the last one perhaps fewer. Returns QuantizedMatrix::columns: the input of each stored
/// column, ascending in a group; empty when the groups are neighbours already. DATA_LOSS when a
/// group does not exist, UNIMPLEMENTED when groups have other sizes.
absl::StatusOr<std::vector<int32_t>> ColumnOrder(const std::vector<int32_t>& group_of, int64_t size,
                                                 const std::string& name);

/// Brings the columns of `codes` [n, k] from the input's order into stored order.
void ReorderColumns(const std::vector<int32_t>& columns, std::vector<uint8_t>& codes);

}  // namespace quantd

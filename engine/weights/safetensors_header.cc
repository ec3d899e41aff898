#include "engine/weights/safetensors_header.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>

#include "kernels/fault_text.h"
#include "kernels/status.h"

namespace quantd {
namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // of the reference reader
constexpr size_t kMaxRank = 32;                    // no model comes near; keeps shapes small

struct DTypeRow {
  StoredDType dtype;
  std::string_view name;
  int bits;
};
constexpr DTypeRow kDTypes[] = {
    {StoredDType::kBool, "BOOL", 8},
    {StoredDType::kF4, "F4", 4},
    {StoredDType::kF6E2M3, "F6_E2M3", 6},
    {StoredDType::kF6E3M2, "F6_E3M2", 6},
    {StoredDType::kU8, "U8", 8},
    {StoredDType::kI8, "I8", 8},
    {StoredDType::kF8E5M2, "F8_E5M2", 8},
    {StoredDType::kF8E4M3, "F8_E4M3", 8},
    {StoredDType::kF8E8M0, "F8_E8M0", 8},
    {StoredDType::kF8E4M3Fnuz, "F8_E4M3FNUZ", 8},
    {StoredDType::kF8E5M2Fnuz, "F8_E5M2FNUZ", 8},
    {StoredDType::kI16, "I16", 16},
    {StoredDType::kU16, "U16", 16},
    {StoredDType::kF16, "F16", 16},
    {StoredDType::kBF16, "BF16", 16},
    {StoredDType::kI32, "I32", 32},
    {StoredDType::kU32, "U32", 32},
    {StoredDType::kF32, "F32", 32},
    {StoredDType::kC64, "C64", 64},
    {StoredDType::kF64, "F64", 64},
    {StoredDType::kI64, "I64", 64},
    {StoredDType::kU64, "U64", 64},
};

const DTypeRow& RowOf(StoredDType t) {
  for (const DTypeRow& row : kDTypes) {
    if (row.dtype == t) return row;
  }
  QUANTD_CHECK(false, "dtype {}", static_cast<int>(t));
  return kDTypes[0];
}

// Reads the header without building a tree: its memory is bounded by the tensors it names. Grammar:
// { name: {dtype: string, shape: [int], data_offsets: [int, int]}, "__metadata__": {string: string}
// }.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return Fault("null"); }
  bool boolean(bool) override { return Fault("a boolean"); }
  bool number_integer(number_integer_t v) override { return Fault(fmt::format("{}", v)); }
  bool number_float(number_float_t, const string_t& text) override { return Fault(text); }
  bool binary(binary_t&) override { return Fault("binary data"); }

  bool number_unsigned(number_unsigned_t v) override {
    if (depth_ != 3) return Fault(fmt::format("{}", v));
    if (v > static_cast<uint64_t>(INT64_MAX)) return Fault(fmt::format("{}, beyond 2^63 - 1", v));
    std::vector<int64_t>& list = field_ == "shape" ? entry_.shape : offsets_;
    if (list.size() >= kMaxRank)
      return Fault(fmt::format("a list of more than {} numbers", kMaxRank));
    list.push_back(static_cast<int64_t>(v));
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && in_metadata_) {
      header.metadata[field_] = text;
      return true;
    }
    if (depth_ != 2 || field_ != "dtype") return Fault("a string");
    const auto dtype = ParseStoredDType(text);
    if (!dtype)
      return FaultText(fmt::format("tensor \"{}\": dtype \"{}\" is unknown", name_, text));
    entry_.dtype = *dtype;
    seen_ |= kDType;
    return true;
  }

  bool start_object(std::size_t) override {
    if (++depth_ > 2) return Fault("an object");
    if (depth_ == 2) {
      entry_ = {};
      offsets_.clear();
      seen_ = 0;
    }
    return true;
  }

  bool end_object() override {
    if (depth_-- != 2 || in_metadata_) return true;
    if (seen_ != (kDType | kShape | kOffsets)) {
      return FaultText(
          fmt::format("tensor \"{}\": dtype, shape or data_offsets is missing", name_));
    }
    if (offsets_.size() != 2) {
      return FaultText(
          fmt::format("tensor \"{}\": data_offsets has {} numbers, not 2", name_, offsets_.size()));
    }
    entry_.begin = static_cast<size_t>(offsets_[0]);
    entry_.end = static_cast<size_t>(offsets_[1]);
    header.tensors[name_] = std::move(entry_);
    return true;
  }

  bool start_array(std::size_t) override {
    if (++depth_ != 3 || in_metadata_ || (field_ != "shape" && field_ != "data_offsets"))
      return Fault("a list");
    return true;
  }
  bool end_array() override {
    --depth_;
    seen_ |= field_ == "shape" ? kShape : kOffsets;
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) {
      name_ = text;
      in_metadata_ = name_ == "__metadata__";
      if (in_metadata_ ? std::exchange(metadata_seen_, true) : header.tensors.count(name_) > 0) {
        return FaultText(fmt::format("key \"{}\" occurs twice", name_));
      }
      return true;
    }
    field_ = text;
    if (in_metadata_) {
      if (header.metadata.count(field_) == 0) return true;
      return FaultText(fmt::format("__metadata__: key \"{}\" occurs twice", field_));
    }
    const int bit = field_ == "dtype"          ? kDType
                    : field_ == "shape"        ? kShape
                    : field_ == "data_offsets" ? kOffsets
                                               : 0;
    if (bit == 0) return FaultText(fmt::format("tensor \"{}\": unknown key \"{}\"", name_, field_));
    if (seen_ & bit)
      return FaultText(fmt::format("tensor \"{}\": key \"{}\" occurs twice", name_, field_));
    return true;
  }

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& e) override {
    return FaultText(fmt::format("the header is not valid JSON at byte {}: {}", position,
                                 ForeignWords(e.what())));
  }

  SafetensorsHeader header;
  std::string fault;

 private:
  enum Seen { kDType = 1, kShape = 2, kOffsets = 4 };

  bool Fault(const std::string& found) {
    if (depth_ <= 1)
      return FaultText(fmt::format("the header holds {} where an object belongs", found));
    return FaultText(fmt::format("tensor \"{}\": {} is {}", name_, field_, found));
  }
  bool FaultText(std::string text) {
    fault = std::move(text);
    return false;
  }

  int depth_ = 0;
  std::string name_;   // key of the outer object
  std::string field_;  // key of the inner one
  bool in_metadata_ = false;
  bool metadata_seen_ = false;
  HeaderEntry entry_;
  std::vector<int64_t> offsets_;
  int seen_ = 0;
};

// Bytes an entry's dtype and shape ask for; nullopt when that overflows or is not whole bytes.
std::optional<uint64_t> BytesOf(const HeaderEntry& entry) {
  uint64_t bits = static_cast<uint64_t>(BitsOf(entry.dtype));
  for (const int64_t d : entry.shape) {
    if (__builtin_mul_overflow(bits, static_cast<uint64_t>(d), &bits)) return std::nullopt;
  }
  if (bits % 8 != 0) return std::nullopt;
  return bits / 8;
}

absl::Status CheckLayout(SafetensorsHeader& header, size_t data_begin, size_t file_size,
                         const std::string& source) {
  std::vector<std::map<std::string, HeaderEntry>::iterator> order;
  for (auto it = header.tensors.begin(); it != header.tensors.end(); ++it) order.push_back(it);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  const size_t data_size = file_size - data_begin;
  size_t position = 0;
  for (const auto& it : order) {
    HeaderEntry& e = it->second;
    const auto where = [&] { return fmt::format("{}: tensor \"{}\"", source, it->first); };
    if (e.begin > e.end)
      return DataLoss("{}: data_offsets [{}, {}] run backwards", where(), e.begin, e.end);
    if (e.end > data_size) {
      return DataLoss("{}: data_offsets end at {}, the file has {} bytes of data (truncated?)",
                      where(), e.end, data_size);
    }
    const auto bytes = BytesOf(e);
    if (!bytes) {
      return DataLoss("{}: {} {} is not a whole number of bytes below 2^64", where(),
                      ToString(e.dtype), ShapeText(e.shape));
    }
    if (*bytes != e.end - e.begin) {
      return DataLoss("{}: {} {} takes {} bytes, data_offsets give {}", where(), ToString(e.dtype),
                      ShapeText(e.shape), *bytes, e.end - e.begin);
    }
    if (e.begin != position) {
      return DataLoss("{}: data_offsets begin at {}, {} the tensor before it, which ends at {}",
                      where(), e.begin, e.begin < position ? "overlapping" : "leaving a hole after",
                      position);
    }
    position = e.end;
    e.begin += data_begin;
    e.end += data_begin;
  }
  if (position != data_size) {
    return DataLoss("{}: {} bytes follow the last tensor", source, data_size - position);
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view ToString(StoredDType t) { return RowOf(t).name; }

std::optional<StoredDType> ParseStoredDType(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

int BitsOf(StoredDType t) { return RowOf(t).bits; }

std::optional<DType> ToDType(StoredDType t) {
  switch (t) {
    case StoredDType::kF32: return DType::kF32;
    case StoredDType::kF16: return DType::kF16;
    case StoredDType::kBF16: return DType::kBF16;
    case StoredDType::kI32: return DType::kI32;
    case StoredDType::kI8: return DType::kI8;
    case StoredDType::kU8: return DType::kU8;
    default: return std::nullopt;
  }
}

StoredDType ToStoredDType(DType t) {
  switch (t) {
    case DType::kF32: return StoredDType::kF32;
    case DType::kF16: return StoredDType::kF16;
    case DType::kBF16: return StoredDType::kBF16;
    case DType::kI32: return StoredDType::kI32;
    case DType::kI8: return StoredDType::kI8;
    case DType::kU8: return StoredDType::kU8;
  }
  return StoredDType::kU8;
}

std::string ShapeText(std::span<const int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

absl::StatusOr<SafetensorsHeader> ParseSafetensors(std::span<const std::byte> file,
                                                   const std::string& source) {
  if (file.size() < 8)
    return DataLoss("{}: {} bytes, too short for a safetensors file", source, file.size());
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);  // little-endian, as every machine we build for
  if (length > kMaxHeaderBytes) {
    return DataLoss("{}: header length {} is above the limit of {}", source, length,
                    kMaxHeaderBytes);
  }
  if (length > file.size() - 8) {
    return DataLoss("{}: header length {} is beyond the file's {} bytes (truncated?)", source,
                    length, file.size());
  }
  const char* text = reinterpret_cast<const char*>(file.data()) + 8;
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(text, text + length, &reader))
    return DataLoss("{}: {}", source, reader.fault);
  RETURN_IF_ERROR(CheckLayout(reader.header, 8 + static_cast<size_t>(length), file.size(), source));
  return std::move(reader.header);
}

}  // namespace quantd

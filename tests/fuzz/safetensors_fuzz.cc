// A safetensors file.
#include "engine/weights/safetensors_header.h"
#include "tests/fuzz/fuzz_target.h"

namespace quantd {
namespace {

FUZZ_TARGET(safetensors) {
  const auto header = ParseSafetensors(std::as_bytes(bytes), "fuzzed");
  if (!header.ok()) return;
  size_t total = 0;
  for (const auto& [name, entry] : header->tensors) {
    QUANTD_CHECK(entry.begin <= entry.end && entry.end <= bytes.size(), "{}: [{}, {}) of {}", name,
                 entry.begin, entry.end, bytes.size());
    total += entry.end - entry.begin;
  }
  QUANTD_CHECK(total <= bytes.size(), "{} bytes of tensors in {}", total, bytes.size());
}

}  // namespace
}  // namespace quantd

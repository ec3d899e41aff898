#include "engine/plan/device_check.h"

#include <algorithm>
#include <array>
#include <limits>
#include <set>
#include <span>

#include "kernels/fault_list.h"

namespace quantd {
namespace {

constexpr size_t kMaxFused = 4;                                            // modules of a weight
constexpr int64_t kMaxIndex = std::numeric_limits<int32_t>::max() - 4096;  // rows, columns, blocks
// Inputs of a Linear over int8 rows: two words for 32 of them, and 16.5 KiB, are in a block's
// shared memory, of which the smallest devices (compute capability 8.6, 8.9) have 99 KiB.
constexpr int64_t kMaxInt8Inputs = (99 * 1024 - 16896) / 8 * 32;
constexpr std::array<int64_t, 5> kHeadDims = {32, 64, 96, 128, 256};  // with tensor cores

template <typename Body>
void ForWeights(const WeightsPlan& weights, const Body& body) {
  body(std::span<const ModulePlan>(&weights.embedding, 1));
  for (const auto& group : weights.groups) {
    for (const auto run : FusedRuns(group)) body(run);
  }
  if (weights.head) body(std::span<const ModulePlan>(&*weights.head, 1));
}

bool MultipliesIntegers(const ModulePlan& w) {
  if (w.activation.kind == ActivationQuant::Kind::kInt8Outlier) return true;
  return w.format.codec == Codec::kInt8 && w.format.block.kind == BlockShape::Kind::kRow &&
         w.format.zero == ZeroType::kNone && ReplacesInput(w.activation.kind) &&
         !IsFp8(w.activation.kind) && !w.activation.reference;
}

void CheckFused(std::span<const ModulePlan> modules, FaultList& faults) {
  const WeightShape& first = modules.front().shape;
  if (modules.size() > kMaxFused) {
    faults.AddUnimplemented("{}: cuda fuses at most {} modules into a weight, not {}", first.module,
                            kMaxFused, modules.size());
  }
  int64_t rows = 0;
  for (const ModulePlan& w : modules) {
    rows += w.shape.n;
    if (rows > kMaxIndex || w.shape.k > kMaxIndex ||
        w.format.block.Count(w.shape.n, w.shape.k) > kMaxIndex) {
      faults.AddUnimplemented("{}: cuda has no kernels for {} rows of {} as {}", w.shape.module,
                              rows, w.shape.k, w.format.ToString());
    }
  }
  if (MultipliesIntegers(modules.front()) && first.k > kMaxInt8Inputs) {
    faults.AddUnimplemented(
        "{}: cuda multiplies int8 rows of at most {} inputs, not {}; a profile of 4 or 16 bits",
        first.module, kMaxInt8Inputs, first.k);
  }
}

}  // namespace

absl::Status CheckDevice(const LoadPlan& load, const PlanDevice& device) {
  if (device.backend != PlanBackend::kCuda) return absl::OkStatus();
  FaultList faults;
  ForWeights(load.weights, [&](std::span<const ModulePlan> run) { CheckFused(run, faults); });
  return faults.ToStatus(absl::StatusCode::kUnimplemented);
}

std::vector<std::string> SlowPaths(const DecoderSpec& spec, const LoadPlan& load,
                                   const PlanDevice& device) {
  if (device.backend != PlanBackend::kCuda) return {};
  const DType compute = load.options.compute_dtype, kv = load.kv_dtype();
  if (compute == DType::kF32) {  // of everything then
    return {
        "dtype float32: cuda's tensor core kernels take 16-bit activations, float32 runs in "
        "generic "
        "ones, which are slower; dtype: bfloat16 in the profile"};
  }
  std::vector<std::string> slow;
  if (std::find(kHeadDims.begin(), kHeadDims.end(), spec.head_dim) == kHeadDims.end()) {
    slow.push_back(
        fmt::format("head_dim {}: cuda's tensor core attention takes {}, other sizes run in its "
                    "generic kernel, which is slower; the size is the model's: nothing but another "
                    "model changes it",
                    spec.head_dim, fmt::join(kHeadDims, ", ")));
  }
  if (kv != DType::kI8 && kv != compute) {
    slow.push_back(fmt::format(
        "kv_cache.dtype {}: cuda's tensor core attention takes the compute dtype, {}, or int8, "
        "others run in its generic kernel, which is slower; kv_cache: {{dtype: auto}} in the "
        "profile",
        ToString(kv), ToString(compute)));
  }
  std::set<std::string> other;
  ForWeights(load.weights, [&](std::span<const ModulePlan> run) {
    const Codec codec = run.front().format.codec;
    const bool same = codec == (compute == DType::kBF16 ? Codec::kBF16 : Codec::kF16);
    if (IsPlain(codec) && !same && run.data() != &load.weights.embedding) {
      other.insert(run.front().format.ToString());
    }
  });
  for (const std::string& format : other) {
    slow.push_back(fmt::format(
        "weights in {}: cuda's tensor core kernels take 16-bit floats of the compute dtype, {}; "
        "dtype: auto in the profile, or another compute dtype",
        format, ToString(compute)));
  }
  return slow;
}

}  // namespace quantd

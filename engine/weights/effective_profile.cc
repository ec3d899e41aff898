#include "engine/weights/effective_profile.h"

#include "engine/weights/quantization_options.h"
#include "kernels/status.h"

namespace quantd {
namespace {

bool AsksForNothing(const QuantProfile& p) {
  return p.quantization.is_none() && !p.quantization.compute_dtype && p.overrides.empty();
}

// A profile may be given for a checkpoint that is quantized already only if it asks for what is
// there.
absl::Status CheckAgainstCheckpoint(const QuantProfile& profile, const MethodOptions& stored) {
  const MethodOptions& asked = profile.quantization;
  // A checkpoint whose mapping names no compute dtype leaves it to the profile.
  const bool names_dtype = !MethodOf(stored).compute_dtype_key(stored).empty();
  const bool agrees = asked.SameWeights(stored) && profile.overrides.empty() &&
                      (!names_dtype || asked.compute_dtype == stored.compute_dtype);
  if (agrees) return absl::OkStatus();
  return InvalidArgument(
      "profile {} asks for {}{}, but the checkpoint is quantized already: {}; load it without a "
      "profile, or "
      "start from a full-precision checkpoint",
      profile.name, Describe(asked), profile.overrides.empty() ? "" : " with overrides",
      Describe(stored));
}

}  // namespace

absl::StatusOr<QuantProfile> EffectiveProfile(QuantProfile profile, bool profile_given,
                                              const std::optional<MethodOptions>& prequantized) {
  const bool given = profile_given && !(prequantized && AsksForNothing(profile));
  if (!given) {
    profile.name = kCheckpointProfile;
    profile.description = "As the checkpoint is.";
    profile.quantization = prequantized.value_or(MethodOptions{});
    profile.overrides.clear();
    return profile;
  }
  if (prequantized) {
    RETURN_IF_ERROR(CheckAgainstCheckpoint(profile, *prequantized));
    // An 8-bit checkpoint does not say in which dtype to compute; a profile may.
    const std::optional<DType> dtype = profile.quantization.compute_dtype;
    profile.quantization = *prequantized;
    profile.quantization.compute_dtype = dtype;
  }
  return profile;
}

}  // namespace quantd

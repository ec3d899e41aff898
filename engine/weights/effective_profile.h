// EffectiveProfile: the profile that describes what will really be loaded. Pure function.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "engine/weights/profile.h"

namespace quantd {

/// The profile of a checkpoint as it is.
inline constexpr char kCheckpointProfile[] = "checkpoint";

/// `profile` as it is for a full-precision checkpoint, or, where none was given, one named
/// kCheckpointProfile that quantizes nothing. For a checkpoint that is quantized already the
/// methods are those of `prequantized`; INVALID_ARGUMENT when the profile asks for others.
absl::StatusOr<QuantProfile> EffectiveProfile(QuantProfile profile, bool profile_given,
                                              const std::optional<MethodOptions>& prequantized);

}  // namespace quantd

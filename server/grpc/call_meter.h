// CallMeter: hears what one call takes, for quotas and the log. Called with the call's mutex held:
// must be quick and must not call back.
#pragma once

#include "engine/request.h"

namespace quantd {

class CallMeter {
 public:
  virtual ~CallMeter() = default;
  /// The request is about to be handed to the engine.
  virtual void OnSubmit(int64_t prompt_tokens) = 0;
  /// What the client gets; not after OnEnd.
  virtual void OnUpdate(const RequestUpdate& update) = 0;
  /// What the engine did, whether or not the call has ended meanwhile. Before OnUpdate.
  virtual void OnComputed(const RequestUpdate& update) = 0;
  /// Once: how the call ended for its client.
  virtual void OnEnd(const absl::Status& status) = 0;
};

}  // namespace quantd

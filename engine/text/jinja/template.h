// Template: a chat template, parsed once and run for each request.
//
// The subset of Jinja 3.1 that chat templates use, with transformers' settings (trim_blocks,
// lstrip_blocks, loop controls, {% generation %}, raise_exception, strftime_now, its tojson): an
// interpreter of our own, because a template is a program that comes with a model and must not be
// able to do more than to make a text. Immutable after Parse, safe from any thread.
#pragma once

#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/text/jinja/value.h"

namespace quantd::jinja {

/// What one run may take, besides what follows from the size of its input.
struct RenderOptions {
  int64_t max_steps = 4'000'000;           // well under a second
  int64_t max_bytes = int64_t{256} << 20;  // of all texts and lists it makes, kept or not
  std::optional<std::tm> now;              // for strftime_now; absent: the local time
};

class Template {
 public:
  /// INVALID_ARGUMENT with the line for what is no template, UNIMPLEMENTED naming a tag that is not
  /// supported, RESOURCE_EXHAUSTED for what is nested too deeply or is not short (1 MiB).
  static absl::StatusOr<std::unique_ptr<Template>> Parse(std::string_view source);
  ~Template();

  /// The text that the template makes of `variables`. INVALID_ARGUMENT with the line for what it
  /// raises itself and for what Python would raise, UNIMPLEMENTED naming what is not supported,
  /// RESOURCE_EXHAUSTED when it takes more than it may.
  absl::StatusOr<std::string> Render(const Bindings& variables,
                                     const RenderOptions& options = {}) const;

 private:
  struct Tree;
  explicit Template(std::unique_ptr<const Tree> tree);
  std::unique_ptr<const Tree> tree_;
};

}  // namespace quantd::jinja

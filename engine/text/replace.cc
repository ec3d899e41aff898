#include "engine/text/replace.h"

namespace quantd {

bool AppendReplaced(std::string_view text, std::string_view pattern, std::string_view content,
                    size_t limit, std::string* out) {
  size_t done = 0;
  for (size_t at; (at = text.find(pattern, done)) != std::string_view::npos;) {
    out->append(text.substr(done, at - done));
    out->append(content);
    done = at + pattern.size();
    if (out->size() > limit) return false;
  }
  out->append(text.substr(done));
  return out->size() <= limit;
}

std::string Replaced(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  out.reserve(text.size());
  AppendReplaced(text, pattern, content, std::string::npos, &out);
  return out;
}

}  // namespace quantd

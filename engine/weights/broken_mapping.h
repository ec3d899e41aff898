// What happens when a page of a mapped file cannot be read any more: the file was cut by somebody
// else, or its disk fails. The kernel then sends SIGBUS; here it becomes one line and an exit.
//
// Thread-safe.
#pragma once

#include <cstddef>
#include <string>

namespace quantd {

/// [begin, begin + bytes) holds the file at `path`, until RemoveMapping(begin).
void AddMapping(const void* begin, size_t bytes, const std::string& path);
void RemoveMapping(const void* begin);

/// From now on a mapped page that cannot be read ends the process with exit code 1 and a line on
/// stderr that names the file. A SIGBUS of any other origin kills as before. For programs, which
/// may say how they end; nothing is undone, so not for a process that holds more than it can lose.
void ExitOnBrokenMapping();

}  // namespace quantd

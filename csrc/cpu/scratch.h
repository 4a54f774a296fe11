// Memory that a thread keeps between calls, 64-byte aligned. One request at a time per slot.
#pragma once

#include <cstdint>
#include <vector>

namespace pyprune::cpu {

template <int Slot>
inline char* scratch(int64_t bytes) {
  thread_local std::vector<char> memory;
  if (int64_t(memory.size()) < bytes + 64) memory.resize(bytes + 64);
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

}  // namespace pyprune::cpu

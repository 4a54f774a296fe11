// Memory that a thread keeps between calls, 64-byte aligned. One request at a time per slot.
#pragma once

#include <cstdint>
#include <vector>

namespace pyprune::cpu {

// More floats than this are not kept but given back after the call.
inline constexpr int64_t kKeptFloats = int64_t(4) << 20;

template <int Slot>
inline char* scratch(int64_t bytes) {
  thread_local std::vector<char> memory;
  if (int64_t(memory.size()) < bytes + 64) {
    memory = std::vector<char>();  // nobody wants the old contents: free them before asking for more
    memory.resize(bytes + 64);
  }
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

}  // namespace pyprune::cpu

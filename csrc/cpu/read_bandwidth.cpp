// How fast this machine reads memory: loads and nothing else, block by block, with prefetch. No operator uses it. It is in
// the library because the benchmarks judge the kernels by it (bench/ceilings.py), with the same compiler and threads.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace {

typedef uint64_t Words __attribute__((vector_size(64), aligned(1), may_alias));

#if defined(__x86_64__) && defined(__GLIBC__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
uint64_t fold(const char* data, int64_t bytes) {
  constexpr int64_t kStep = 4 * sizeof(Words), kDistance = 16384;
  Words a{}, b{}, c{}, d{};
  for (int64_t i = 0; i + kStep <= bytes; i += kStep) {
    const auto* words = reinterpret_cast<const Words*>(data + i);
    for (int64_t line = 0; line < kStep; line += 64) __builtin_prefetch(data + i + kDistance + line, 0, 2);
    a ^= words[0], b ^= words[1], c ^= words[2], d ^= words[3];
  }
  a ^= b ^ c ^ d;
  uint64_t result = 0;
  for (int i = 0; i < 8; ++i) result ^= a[i];
  return result;
}

}  // namespace

// Reads `bytes` of memory, down to a multiple of 256, with torch's threads. Gives a value that depends on all of them, so
// that nothing can be left out. The threads take neighbouring blocks: far apart they met in the same memory banks.
extern "C" __attribute__((visibility("default"))) uint64_t pyprune_read(const void* data, int64_t bytes) {
  constexpr int64_t kBlock = 1 << 18;
  std::atomic<uint64_t> result{0};
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t, int64_t) {
    for (int64_t start; (start = next.fetch_add(kBlock)) < bytes;)
      result ^= fold(static_cast<const char*>(data) + start, std::min(kBlock, bytes - start));
  });
  return result;
}

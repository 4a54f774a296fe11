// A CPU that runs the kernel's own source, for tests where there is no GPU. A block's 256 threads are fibers that take
// turns: each runs until it meets a barrier or a shuffle, in an order drawn anew every time, so that a missing barrier
// shows as a wrong result. Every load of a weight is checked (aligned, inside its row) and counted. Shared memory starts
// as NaN. It stands in for csrc/cuda/instructions.cuh.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct Index {
  int x;
};
inline Index threadIdx, blockIdx;

[[noreturn]] inline void fail(const char* what) {
  std::printf("FAILED: %s (block %d, thread %d)\n", what, blockIdx.x, threadIdx.x);
  std::exit(1);
}

namespace emulator {

constexpr int kThreads = 256, kWarp = 32, kStack = 64 * 1024;
enum class State { ready, at_block_barrier, at_shuffle, done };

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  State state = State::ready;
};

inline std::vector<Fiber> fibers(kThreads);
inline ucontext_t scheduler;
inline std::function<void()> kernel;
inline std::mt19937 random_order{1};
inline float deposited[kThreads];
inline std::vector<uint4> shared;

inline void enter() {
  kernel();
  fibers[threadIdx.x].state = State::done;
}

inline void wait(State state) {
  const int thread = threadIdx.x;
  fibers[thread].state = state;
  swapcontext(&fibers[thread].context, &scheduler);
  threadIdx.x = thread;
}

inline int release(int begin, int end, State state) {
  for (int t = begin; t < end; ++t)
    if (fibers[t].state != state) return 0;
  for (int t = begin; t < end; ++t) fibers[t].state = State::ready;
  return end - begin;
}

// One block, from its first instruction to its last.
inline void run_block(int block, int shared_bytes, const std::function<void()>& body) {
  blockIdx.x = block;
  kernel = body;
  shared.assign(size_t(shared_bytes) / sizeof(uint4), uint4{~0u, ~0u, ~0u, ~0u});
  for (auto& fiber : fibers) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
    fiber.state = State::ready;
  }
  std::vector<int> order(kThreads);
  for (int t = 0; t < kThreads; ++t) order[t] = t;
  // Some warps are slow: they run only when the others cannot, so that the others are as far ahead as they can get.
  const uint32_t slow = random_order();
  for (;;) {
    std::shuffle(order.begin(), order.end(), random_order);
    int ran = 0, done = 0;
    const auto run = [&](bool slow_ones) {
      for (const int t : order) {
        if (fibers[t].state != State::ready || (slow >> (t / kWarp) & 1) != slow_ones) continue;
        threadIdx.x = t;
        swapcontext(&scheduler, &fibers[t].context);
        ++ran;
      }
    };
    run(false);
    if (!ran) run(true);
    for (const auto& fiber : fibers) done += fiber.state == State::done;
    if (done == kThreads) return;
    int released = release(0, kThreads, State::at_block_barrier);
    for (int w = 0; w < kThreads; w += kWarp) released += release(w, w + kWarp, State::at_shuffle);
    if (!ran && !released) fail("threads wait for each other in different places");
  }
}

// A weight matrix, how often each element was read, and by which kind of load.
struct Matrix {
  const char* data = nullptr;
  int64_t n = 0, k = 0, stride = 0, size = 0;
  std::vector<int> reads;
  int64_t wide_loads = 0;

  bool read(const void* address, int bytes) {
    const int64_t offset = static_cast<const char*>(address) - data;
    if (!n || offset < 0 || offset >= ((n - 1) * stride + k) * size) return false;
    const int64_t row = offset / (stride * size), column = offset / size % stride;
    if (offset % size) fail("a load between two elements");
    if (column + bytes / size > k) fail("a load beyond its row");
    for (int64_t i = 0; i < bytes / size; ++i) ++reads[row * k + column + i];
    return true;
  }
};
inline Matrix matrices[3];

inline Matrix& read(const void* address, int bytes) {
  for (Matrix& matrix : matrices)
    if (matrix.read(address, bytes)) return matrix;
  fail("a load outside the weights");
}

}  // namespace emulator

namespace pyprune::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline uint64_t streaming_policy() { return 0; }
inline uint4 load_weights(const void* address, uint64_t, bool wanted) {
  if (!wanted) return {};
  if (reinterpret_cast<uintptr_t>(address) % 16) fail("a 16-byte load that is not aligned");
  ++emulator::read(address, 16).wide_loads;
  uint4 value;
  std::memcpy(&value, address, 16);
  return value;
}
inline uint4 load_wide(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16) fail("16 bytes of activations that are not aligned");
  uint4 value;
  std::memcpy(&value, address, 16);
  return value;
}
template <class W>
inline W load_weight(const W* address) {
  emulator::read(address, sizeof(W));
  return *address;
}
inline void wait_for_previous_kernel() {}
inline void let_next_kernel_start() {}
inline int recomputed(int value) { return value; }
inline uint4* dynamic_shared() { return emulator::shared.data(); }
inline void block_barrier() { emulator::wait(emulator::State::at_block_barrier); }
inline float from_neighbour(float value, int distance) {
  emulator::deposited[threadIdx.x] = value;
  emulator::wait(emulator::State::at_shuffle);
  const float result = emulator::deposited[threadIdx.x ^ distance];
  emulator::wait(emulator::State::at_shuffle);  // nobody deposits the next value before all have read this one
  return result;
}

inline float widen(float value) { return value; }
inline float widen(Bf16 value) { return bits_as<float>(uint32_t(value.bits) << 16); }
inline float widen(Half value) { return float(bits_as<_Float16>(value.bits)); }
template <class W>
inline float2 widen_pair(W, uint32_t word) {
  return {widen(W{uint16_t(word)}), widen(W{uint16_t(word >> 16)})};
}
inline float word_as_float(uint32_t word) { return bits_as<float>(word); }
inline uint32_t float_as_word(float value) { return bits_as<uint32_t>(value); }
inline float2 words_as_floats(uint32_t a, uint32_t b) { return {bits_as<float>(a), bits_as<float>(b)}; }
inline void narrow(float value, float& result) { result = value; }
inline void narrow(float value, Bf16& result) {
  const uint32_t bits = bits_as<uint32_t>(value);
  result.bits = value != value ? 0x7fff : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline void narrow(float value, Half& result) { result.bits = bits_as<uint16_t>(_Float16(value)); }

}  // namespace pyprune::cuda

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }

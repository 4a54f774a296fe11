// Prefetch: weights are fetched into the cache before they are multiplied.
#pragma once

#include <cstdint>

namespace {

// Bytes between the weights that are read and those that are prefetched, at least. With 16384 SmolLM2's step took 1.03 to
// 1.10 times as long (2 cores of a Zen 4): compressed weights at batch 1, plain ones at batch 8.
constexpr int64_t kDistance = 6144;

// Cache lines to be prefetched in the order in which they lie, spread evenly over the steps of a product.
struct Prefetch {
  const char* next = nullptr;
  int64_t lines = 0;

  // Far enough ahead for memory to answer, and never less than the `block` of bytes that is read at one time.
  static const char* of(const void* weights, int64_t block) {
    return static_cast<const char*>(weights) + (block > kDistance ? block : kDistance);
  }
  // The same in whole blocks, for block `index` of `count` from `weights` on: past the last one it goes on at `next`, the
  // memory that this thread reads then; null: what lies behind.
  static const char* of(const void* weights, int64_t block, int64_t index, int64_t count, const void* next) {
    const int64_t later = index + (block > 0 ? (kDistance + block - 1) / block : 1);
    if (later < count || !next) return static_cast<const char*>(weights) + later * block;
    return static_cast<const char*>(next) + (later - count) * block;
  }
  // Share `index` of `count` even ones.
  Prefetch part(int64_t index, int64_t count) const {
    const int64_t from = lines * index / count;
    return {next + from * 64, lines * (index + 1) / count - from};
  }
  // `due` keeps the remainder from step to step; outside, so that an Prefetch passes in two registers.
  void step(int64_t steps, int64_t& due) {
    for (due += lines; due >= steps; due -= steps, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

}  // namespace

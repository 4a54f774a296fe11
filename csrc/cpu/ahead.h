// Weights called from memory before they are multiplied.
#pragma once

#include <cstdint>

namespace {

constexpr int64_t kDistance = 16384;  // bytes between the weights that are read and those called from memory

// Lines of memory to be called in the order in which they lie, spread evenly over the steps of a product.
struct Ahead {
  const char* next = nullptr;
  int64_t lines = 0;

  // Far enough ahead for memory to answer, and never less than the `block` of bytes that is read at one time.
  static const char* of(const void* weights, int64_t block) {
    return static_cast<const char*>(weights) + (block > kDistance ? block : kDistance);
  }
  // `due` keeps the remainder from step to step; outside, so that an Ahead passes in two registers.
  void step(int64_t steps, int64_t& due) {
    for (due += lines; due >= steps; due -= steps, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

}  // namespace

// Products of compressed bfloat16 weights (compressed_bf16.h): a part of kernels.cpp, whose products it uses. Results have the bits of the
// bfloat16 weights that they stand for.
#pragma once

#include <cstdlib>
#include <new>

#include "compressed_bf16_row.h"

namespace {

static_assert(kInBits == Dot<bf16>::chunk);

// As for other weights; a group of 64 values is so many chunks of bfloat16.
template <int R, int MT>
ALWAYS_INLINE void accumulate(const compressed_bf16* const* w, Prefetch prefetch, int64_t k, const char* x, int64_t x_stride, Vec (&acc)[MT][R]) {
  using D = Dot<bf16>;
  const int64_t whole = k / kGroup, left = k % kGroup;
  CompressedRow rows[R];
  repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { rows[r] = CompressedRow(w[r], k); });
  const auto add = [&](int64_t group, int64_t values) ALWAYS_INLINE_LAMBDA {
    Bits bits[R][kParts];
    repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { rows[r].read(group * kGroup, bits[r]); });
    repeat<kParts>([&](auto part) ALWAYS_INLINE_LAMBDA {
      if (part * D::chunk >= values) return;
      D weights[R];
      repeat<R>([&](auto r) ALWAYS_INLINE_LAMBDA { weights[r] = D(bits[r][part]); });
      repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
        const auto* first = reinterpret_cast<const D::X*>(x + m * x_stride) + group * kGroup;
        D::multiply(weights, first + part * D::chunk, acc[m]);
      });
    });
  };
  for (int64_t group = 0, due = 0; group < whole; ++group) {
    prefetch.step(whole, due);
    add(group, kGroup);
  }
  if (left > 0) add(whole, left);
}

// Up to four activation rows meet two weight rows side by side, for fewer loads a product; a single one takes them in turn
// (unless it waits for its additions, as in linear_typed). All of them
// prefetch: a single one took 1.05 times as long without (SmolLM2's decode step, 2 cores of a Zen 4).
template <int MT>
void skinny_compressed(const Const& weight, int64_t rows, int64_t k, const char* x, int64_t x_stride, float* out, int64_t out_stride,
              const void* next) {
  const bool in_pairs = MT > 1 || (Dot<bf16>::products > 1 && k > kLongRow);
  const int64_t block = kRows * weight.stride;
  for (int64_t r = 0; r < rows; r += kRows) {
    const int64_t valid = rows - r < kRows ? rows - r : kRows;
    const compressed_bf16* w[kRows];
    for (int64_t i = 0; i < kRows; ++i) w[i] = static_cast<const compressed_bf16*>(weight.row(r + (i < valid ? i : valid - 1)));
    const Prefetch prefetch{Prefetch::of(weight.data, block, r / kRows, (rows + kRows - 1) / kRows, next), block / 64};
    if (in_pairs) tile<compressed_bf16, MT, 2>(w, prefetch, k, x, x_stride, out + r, out_stride, valid);
    else if constexpr (MT == 1) tile<compressed_bf16, MT, 1>(w, prefetch, k, x, x_stride, out + r, out_stride, valid);
  }
}

// A row of n values as bfloat16, while `prefetch` is prefetched.
void to_bf16(const void* compressed_row, int64_t n, bf16* out, Prefetch prefetch) {
  CompressedRow row(compressed_row, n);
  const int64_t whole = n / kGroup, left = n % kGroup;
  Bits bits[kParts];
  for (int64_t group = 0, due = 0; group < whole; ++group) {
    prefetch.step(whole, due);
    row.read(group * kGroup, bits);
    store(bits, out + group * kGroup);
  }
  if (left > 0) {
    bf16 values[kGroup];
    row.read(whole * kGroup, bits);
    store(bits, values);
    std::memcpy(out + whole * kGroup, values, left * sizeof(bf16));
  }
}

void to_bf16_row(const void* compressed_row, int64_t n, void* out) { to_bf16(compressed_row, n, static_cast<bf16*>(out), {}); }

// A thread's memory for weights that were made bfloat16; not scratch.h, whose code instruction sets must not share.
inline bf16* at_hand(int64_t values) {
  struct Memory {
    bf16* data = nullptr;
    int64_t values = 0;
    ~Memory() { std::free(data); }
  };
  thread_local Memory memory;
  if (memory.values < values) {
    std::free(memory.data);
    memory.values = (values + 31) / 32 * 32;
    memory.data = static_cast<bf16*>(std::aligned_alloc(64, memory.values * sizeof(bf16)));
    if (!memory.data) {
      memory.values = 0;
      throw std::bad_alloc();
    }
  }
  return memory.data;
}

// More than four activation rows (without AVX-512 two) would have each weight unpacked several times, or want more registers
// than there are: four weight rows are made bfloat16 first (16 for tiles), in the caches of the core, and go the way of others.
void linear_compressed(const Const& weight, int64_t rows, int64_t k, const void* packed, int64_t m_count, float* out,
                 int64_t out_stride, const void* next) {
  const auto* x = static_cast<const char*>(packed);
  const int64_t x_stride = padded<bf16>(k) * int64_t(sizeof(Dot<bf16>::X));
#if defined(__AMX_BF16__)
  constexpr int64_t together = amx::kRows;
#else
  constexpr int64_t together = kRows;
  switch (m_count) {
    case 1: return skinny_compressed<1>(weight, rows, k, x, x_stride, out, out_stride, next);
    case 2: return skinny_compressed<2>(weight, rows, k, x, x_stride, out, out_stride, next);
#if defined(__AVX512F__)
    case 3: return skinny_compressed<3>(weight, rows, k, x, x_stride, out, out_stride, next);
    case 4: return skinny_compressed<4>(weight, rows, k, x, x_stride, out, out_stride, next);
#endif
  }
#endif
  const int64_t stride = (k + kGroup - 1) / kGroup * kGroup, blocks = (rows + together - 1) / together;
  bf16* values = at_hand(together * stride);
  for (int64_t r = 0; r < rows; r += together) {
    const int64_t some = rows - r < together ? rows - r : together;
    const char* later = Prefetch::of(weight.data, together * weight.stride, r / together, blocks, next);
    const Prefetch prefetch{later, some * weight.stride / 64};
    for (int64_t i = 0; i < some; ++i) to_bf16(weight.row(r + i), k, values + i * stride, prefetch.part(i, some));
#if defined(__AMX_BF16__)
    amx::linear(values, stride * 2, some, k, x, m_count, out + r, out_stride, nullptr);
#else
    linear_typed(values, stride, some, k, x, x_stride, m_count, out + r, out_stride, nullptr, true);
#endif
  }
}

}  // namespace

// Attention over a split of the KV cache: a part of kernels.cpp, whose products it uses.
#pragma once

namespace {

constexpr int64_t kScored = Vec::width == 16 ? 4 : 2;  // queries that meet a key at a time
constexpr int64_t kQueries = 4, kHeadVecs = Vec::width == 16 ? 4 : 2;  // those that meet vectors of a value

// out[m][l] = sum_d keys[l][d] * x[m][d] for MT packed queries. Each key is read once for all of them, and the sums across
// lanes are made for as many keys as a vector has lanes, which gives a vector of scores: one `linear`, with a sum for
// each score, took 1.2 to 1.6 times as long for all of attention (AVX-512, Zen 4, keys and values in L2).
template <class K, int MT>
inline void score_keys(const K* keys, int64_t stride, int64_t length, int64_t head_dim, const char* x, int64_t x_stride,
                       float* out) {
  const int64_t block = kRows * stride * int64_t(sizeof(K));
  for (int64_t l = 0; l < length; l += kLanes) {
    Vec part[MT][kLanes / kRows];
    for (int64_t p = 0; p < kLanes / kRows; ++p) {
      const K* row[kRows];
      for (int64_t r = 0; r < kRows; ++r) {  // past the end the last one again, whose scores are dropped
        const int64_t at = l + p * kRows + r;
        row[r] = keys + (at < length ? at : length - 1) * stride;
      }
      Vec acc[MT][kRows];
      repeat<MT * kRows>([&](auto i) ALWAYS_INLINE_LAMBDA { acc[i / kRows][i % kRows] = Vec::zero(); });
      accumulate<kRows, MT>(row, {Prefetch::of(row[0], block), block / 64}, head_dim, x, x_stride, acc);
      repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
        part[m][p] = Vec::fold4(acc[m][0], acc[m][1], acc[m][2], acc[m][3]);
      });
    }
    for (int m = 0; m < MT; ++m) store_some(Vec::join(part[m]), out + m * length + l, length - l);
  }
}

void scores(const Const& keys, int64_t length, int64_t head_dim, const void* packed, int64_t m_count, float* out) {
#if defined(__AMX_BF16__)
  if (keys.type == DType::bf16) return linear(keys, length, head_dim, packed, m_count, out, length, nullptr);
#endif
  with_type(keys.type, [&](auto* t) {
    using K = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    const auto* k = static_cast<const K*>(keys.data);
    const int64_t x_stride = packed_bytes(keys.type, head_dim, 1);
    for (int64_t m = 0; m < m_count; m += kScored) {
      const char* x = static_cast<const char*>(packed) + m * x_stride;
      float* home = out + m * length;
      switch (m_count - m < kScored ? m_count - m : kScored) {
        case 1: score_keys<K, 1>(k, keys.stride, length, head_dim, x, x_stride, home); break;
        case 2: score_keys<K, 2>(k, keys.stride, length, head_dim, x, x_stride, home); break;
#if defined(__AVX512F__)
        case 3: score_keys<K, 3>(k, keys.stride, length, head_dim, x, x_stride, home); break;
        case 4: score_keys<K, 4>(k, keys.stride, length, head_dim, x, x_stride, home); break;
#endif
      }
    }
  });
}

// out[m] = sum_l weight[m][l] * value[l] for MT queries and DV vectors of a head: each value is converted once for all
// queries, and there are sums enough under way to hide the time that one addition takes.
template <class V, int MT, int DV>
inline void weighted_sum(const V* values, int64_t stride, int64_t length, int64_t left, const float* weight,
                         int64_t weight_stride, float* out, int64_t out_stride) {
  Vec acc[MT][DV];
  repeat<MT * DV>([&](auto i) ALWAYS_INLINE_LAMBDA { acc[i / DV][i % DV] = Vec::zero(); });
  for (int64_t l = 0; l < length; ++l) {
    const char* later = reinterpret_cast<const char*>(values + l * stride) + kDistance;
    if constexpr (DV > 1)
      for (int64_t byte = 0; byte < DV * kLanes * int64_t(sizeof(V)); byte += 64) __builtin_prefetch(later + byte, 0, 2);
    Vec v[DV];
    repeat<DV>([&](auto d) ALWAYS_INLINE_LAMBDA {
      v[d] = DV == 1 ? load_some(values + l * stride, left) : Vec::load(values + l * stride + d * kLanes);
    });
    repeat<MT>([&](auto m) ALWAYS_INLINE_LAMBDA {
      const Vec w = Vec::all(weight[m * weight_stride + l]);
      repeat<DV>([&](auto d) ALWAYS_INLINE_LAMBDA { acc[m][d] = Vec::fma(w, v[d], acc[m][d]); });
    });
  }
  repeat<MT * DV>([&](auto i) ALWAYS_INLINE_LAMBDA {
    float* home = out + i / DV * out_stride + i % DV * kLanes;
    if constexpr (DV == 1) store_some(acc[i / DV][i % DV], home, left);
    else acc[i / DV][i % DV].store(home);
  });
}

template <class V, int MT>
inline void weighted_sums(const V* values, int64_t stride, int64_t length, int64_t head_dim, const float* weight,
                          float* out) {
  int64_t d = 0;
  for (; d + kHeadVecs * kLanes <= head_dim; d += kHeadVecs * kLanes)
    weighted_sum<V, MT, kHeadVecs>(values + d, stride, length, 0, weight, length, out + d, head_dim);
  for (; d < head_dim; d += kLanes)
    weighted_sum<V, MT, 1>(values + d, stride, length, head_dim - d, weight, length, out + d, head_dim);
}

// Scores, then a softmax without division, then the weighted sum of values.
// score: scratch, [m_count, length].
void attend(const Const& keys, const Const& values, int64_t length, int64_t head_dim, const void* packed,
            int64_t m_count, const int64_t* begin, const int64_t* end, float* score, float* maximum, float* sum,
            float* out) {
  scores(keys, length, head_dim, packed, m_count, score);
  for (int64_t m = 0; m < m_count; ++m) {
    float* row = score + m * length;
    const int64_t from = begin[m] < 0 ? 0 : begin[m] < length ? begin[m] : length;
    const int64_t to = end[m] < from ? from : end[m] < length ? end[m] : length;
    const float highest = highest_of(row + from, to - from, kNothing);
    const Vec shift = Vec::all(highest == kNothing ? 0.0f : highest);  // -inf - -inf would be NaN
    Vec total = Vec::zero();
    each(to - from, [&](int64_t l, int64_t left) {
      const Vec e = exp(load_some(row + from + l, left) - shift);
      store_some(e, row + from + l, left);
      total = total + load_some(row + from + l, left);  // what was stored: lanes past the end are zero
    });
    for (int64_t l = 0; l < from; ++l) row[l] = 0.0f;
    for (int64_t l = to; l < length; ++l) row[l] = 0.0f;
    maximum[m] = highest;
    sum[m] = total.sum();
  }
  with_type(values.type, [&](auto* t) {
    const auto* v = static_cast<decltype(t)>(values.data);
    using V = std::remove_const_t<std::remove_pointer_t<decltype(t)>>;
    for (int64_t m = 0; m < m_count; m += kQueries) {
      const float* weight = score + m * length;
      float* home = out + m * head_dim;
      switch (m_count - m) {
        case 1: weighted_sums<V, 1>(v, values.stride, length, head_dim, weight, home); break;
        case 2: weighted_sums<V, 2>(v, values.stride, length, head_dim, weight, home); break;
        case 3: weighted_sums<V, 3>(v, values.stride, length, head_dim, weight, home); break;
        default: weighted_sums<V, kQueries>(v, values.stride, length, head_dim, weight, home);
      }
    }
  });
}

}  // namespace

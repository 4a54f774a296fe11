// The operators low_rank_project, low_rank_add and low_rank_gradient: LoRA's products, with dropout's mask made where
// they read or write. Rows go in chunks of a fixed length, so no bit of a result depends on the threads.
#include <algorithm>
#include <cmath>

#include "float16.h"
#include "scratch.h"
#include "tensors.h"

namespace pyprune::cpu {
namespace {

constexpr int64_t kChunk = 64;  // rows of a task
constexpr int64_t kPad = 16;    // floats of the longest vector

int64_t filled(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A matrix of any strides as float32 rows of `stride` values, zeros where it has none.
struct Filled {
  int64_t rows, stride;
  Tensor store;
  float* data;

  Filled(const Tensor& t, const char* what, int64_t to_rows, int64_t to_columns)
      : rows(filled(t.size(0), to_rows)), stride(filled(t.size(1), to_columns)),
        store(new_tensor(t, {rows, stride}, ScalarType::Float)), data(static_cast<float*>(store.mutable_data_ptr())) {
    const int64_t height = t.size(0), width = t.size(1), down = t.stride(0), along = t.stride(1);
    const Const source{t.const_data_ptr(), dtype_of(t, what), 0};
    std::fill(data, data + rows * stride, 0.0f);
    const auto copy = [&](const auto* values) {
      if (down < along)  // a transposed one is read as it lies
        for (int64_t c = 0; c < width; ++c)
          for (int64_t r = 0; r < height; ++r) data[r * stride + c] = to_float(values[r * down + c * along]);
      else
        for (int64_t r = 0; r < height; ++r)
          for (int64_t c = 0; c < width; ++c) data[r * stride + c] = to_float(values[r * down + c * along]);
    };
    if (source.type == DType::f32) copy(static_cast<const float*>(source.data));
    else if (source.type == DType::bf16) copy(static_cast<const bf16*>(source.data));
    else copy(static_cast<const f16*>(source.data));
  }
};

Filled factor(const Tensor& a, int64_t width) {
  STD_TORCH_CHECK(a.is_cpu() && a.dim() == 2 && a.size(1) == width, "a: a CPU matrix [rank, ", width, "] is expected");
  return Filled(a, "a", kRankTile, kPad);
}

Filled low_rows(const Tensor& low, int64_t count) {
  STD_TORCH_CHECK(low.is_cpu() && low.dim() >= 1, "low: a CPU tensor [..., rank] is expected");
  const int64_t rank = low.size(low.dim() - 1);
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < low.dim(); ++d) rows *= low.size(d);
  STD_TORCH_CHECK(rows == count, "low: ", count, " rows are expected, not ", rows);
  Tensor whole = low.is_contiguous() ? low : torch::stable::contiguous(low);
  return Filled(torch::stable::view(whole, {count, rank}), "low", 1, kRankTile);
}

// The masks of a call; `rows` draws those of a chunk.
struct Masks {
  const Kernels& k;
  uint64_t seed;
  uint32_t limit;
  int64_t width;
  bool needed;

  Masks(const Kernels& k, int64_t seed, double dropout, int64_t width) : k(k), seed(uint64_t(seed)), limit(0), width(width), needed(dropout > 0) {
    STD_TORCH_CHECK(0 <= dropout && dropout < 1, "dropout: a probability from 0 to below 1 is expected, not ", dropout);
    limit = uint32_t(std::min(65535.0, std::nearbyint(dropout * 65536)));  // half to even, as Python rounds
  }

  Kept rows(int64_t begin, int64_t end) const {
    if (!needed) return {};
    const int64_t stride = filled(width, 64) / 8;
    auto* bits = reinterpret_cast<uint8_t*>(scratch<0>(kChunk * stride));
    for (int64_t m = begin; m < end; ++m) k.kept_bits(seed, m, width, limit, bits + (m - begin) * stride);
    return {bits, stride};
  }
};

// Calls f(chunk, its first row, its end) for all chunks of so many rows.
template <class F>
void each_chunk(int64_t count, int64_t bytes, const F& f) {
  parallel((count + kChunk - 1) / kChunk, bytes, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) f(chunk, chunk * kChunk, std::min(count, (chunk + 1) * kChunk));
  });
}

}  // namespace

Tensor low_rank_project(Tensor x, Tensor a, int64_t seed, double dropout) {
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  const Filled a_rows = factor(a, rows.width);
  const Masks masks(k, seed, dropout, rows.width);
  const int64_t rank = a.size(0);
  Tensor out = new_tensor(x, shape_with_last(x, rank), ScalarType::Float);
  auto* result = static_cast<float*>(out.mutable_data_ptr());
  each_chunk(rows.count, rows.count * rows.width * 4, [&](int64_t, int64_t begin, int64_t end) {
    auto* low = reinterpret_cast<float*>(scratch<1>((end - begin) * a_rows.rows * 4));
    k.project({rows.view.row(begin), rows.view.type, rows.width}, masks.rows(begin, end), end - begin, rows.width,
              a_rows.data, a_rows.stride, a_rows.rows, low);
    for (int64_t m = begin; m < end; ++m) std::copy_n(low + (m - begin) * a_rows.rows, rank, result + m * rank);
  });
  return out;
}

void low_rank_add(Tensor y, Tensor low, Tensor a, int64_t seed, double dropout) {
  const Kernels& k = kernels();
  STD_TORCH_CHECK(y.is_cpu() && y.dim() >= 1 && y.is_contiguous(), "y: a contiguous CPU tensor [..., features] is expected");
  const Rows rows(y, "y");
  const Filled a_rows = factor(a, rows.width), low_values = low_rows(low, rows.count);
  STD_TORCH_CHECK(low.size(low.dim() - 1) == a.size(0), "low: ", a.size(0), " values a row are expected, not ",
                  low.size(low.dim() - 1));
  const Masks masks(k, seed, dropout, rows.width);
  if (!a_rows.rows) return;
  const Mut out = rows_of(y, rows.width);
  each_chunk(rows.count, rows.count * rows.width * 4, [&](int64_t, int64_t begin, int64_t end) {
    k.add_low_rank({out.row(begin), out.type, out.stride}, masks.rows(begin, end), end - begin, rows.width,
                   low_values.data + begin * low_values.stride, a_rows.data, a_rows.stride, a_rows.rows);
  });
}

Tensor low_rank_gradient(Tensor low, Tensor x, int64_t seed, double dropout) {
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  const Filled low_values = low_rows(low, rows.count);
  const Masks masks(k, seed, dropout, rows.width);
  const int64_t rank = low.size(low.dim() - 1), width = filled(rows.width, kPad), ranks = low_values.stride;
  const int64_t chunks = (rows.count + kChunk - 1) / kChunk;
  Tensor out = new_tensor(x, {rank, rows.width}, ScalarType::Float);
  Tensor parts = new_tensor(x, {chunks, ranks, width}, ScalarType::Float);  // a sum for each chunk, joined in order
  auto* part = static_cast<float*>(parts.mutable_data_ptr());
  each_chunk(rows.count, rows.count * rows.width * 4, [&](int64_t chunk, int64_t begin, int64_t end) {
    k.low_rank_gradient({rows.view.row(begin), rows.view.type, rows.width}, masks.rows(begin, end), end - begin,
                        rows.width, low_values.data + begin * ranks, ranks, part + chunk * ranks * width, width);
  });
  auto* result = static_cast<float*>(out.mutable_data_ptr());
  parallel(rank, chunks * ranks * width * 4, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* row = result + r * rows.width;
      std::fill(row, row + rows.width, 0.0f);
      for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        const float* from = part + (chunk * ranks + r) * width;
        for (int64_t i = 0; i < rows.width; ++i) row[i] += from[i];
      }
    }
  });
  return out;
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("low_rank_project", TORCH_BOX(&pyprune::cpu::low_rank_project));
  m.impl("low_rank_add", TORCH_BOX(&pyprune::cpu::low_rank_add));
  m.impl("low_rank_gradient", TORCH_BOX(&pyprune::cpu::low_rank_gradient));
}

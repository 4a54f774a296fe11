// The operator linear_cross_entropy, head and loss in one: a tile of logits lives only until it has been summed.
#include <algorithm>
#include <cmath>

#include "checks.h"
#include "gemm.h"
#include "row_groups.h"

namespace pyprune::cpu {

namespace {

// What a row of logits has come to: the maximum, the sum of exp(logit - maximum), and the target's logit.
struct Losses {
  const int64_t* target;
  std::vector<float> maximum, sum, hit;

  Losses(const int64_t* target, int64_t rows)
      : target(target), maximum(rows, -INFINITY), sum(rows, 0.0f), hit(rows, 0.0f) {}

  void write(int64_t ignore_index, float* loss) const {
    for (size_t i = 0; i < hit.size(); ++i)
      loss[i] = target[i] == ignore_index ? 0.0f : maximum[i] - hit[i] + std::log(sum[i]);
  }
};

// Logits by our own kernels. A task is one block of the vocabulary, of a fixed length, for one group of rows; blocks are
// joined in order, so no bit of a loss depends on the threads or on the other rows.
struct VocabBlocks {
  static constexpr int64_t kBlockVocab = 1024, kTile = 128;

  const Kernels& k;
  const char* x;  // packed
  int64_t width;
  Const weight, bias;
  int64_t vocab;
  Groups groups;
  Losses& losses;
  float *maximum, *sum;  // [blocks, rows]

  int64_t blocks() const { return (vocab + kBlockVocab - 1) / kBlockVocab; }
  int64_t tasks() const { return groups.groups * blocks(); }
  int64_t bytes() const { return tasks() * kBlockVocab * width * 2; }

  void operator()(int64_t task) const {
    const int64_t block = task % blocks(), end = std::min(vocab, (block + 1) * kBlockVocab);
    for (int64_t v = block * kBlockVocab; v < end; v += kTile) {
      const Const rows{weight.row(v), weight.type, weight.stride};
      const int64_t columns = std::min(kTile, end - v);
      groups.each(task / blocks(), [&](Span span, bool last) {
        auto* logits = reinterpret_cast<float*>(scratch<1>(span.count() * columns * 4));
        k.linear(rows, columns, width, x + k.packed_bytes(weight.type, width, span.begin), span.count(), logits, columns,
                 last ? nullptr : rows.data);
        for (int64_t m = span.begin; m < span.end; ++m, logits += columns) {
          if (bias.data) k.add(logits, nullptr, DType::f32, bias.at(v), bias.type, columns, logits, DType::f32);
          const int64_t t = losses.target[m] - v, place = block * groups.count + m;
          if (0 <= t && t < columns) losses.hit[m] = logits[t];
          k.log_sum_exp(logits, columns, &maximum[place], &sum[place]);
        }
      });
    }
  }

  void join() const {
    for (int64_t m = 0; m < groups.count; ++m) {
      float top = -INFINITY, total = 0.0f;
      for (int64_t s = 0; s < blocks(); ++s) top = std::max(top, maximum[s * groups.count + m]);
      for (int64_t s = 0; s < blocks(); ++s) {
        const float own = maximum[s * groups.count + m];
        total += sum[s * groups.count + m] * (own == top ? 1.0f : std::exp(own - top));
      }
      losses.maximum[m] = top, losses.sum[m] = total;
    }
  }
};

}  // namespace

Tensor linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, Optional norm, double eps, Optional bias_tensor,
                            int64_t ignore_index) {
  // Tiles of 1024 x 1024 float32 logits, 4 MB: large enough for GEMM to run at full speed, small enough for L2/L3.
  constexpr int64_t kTileRows = 1024, kTileVocab = 1024;
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  Const w = matrix(weight, rows.width, "weight");
  const int64_t vocab = weight.size(0);
  const Const bias = vector(bias_tensor, vocab, "bias");
  STD_TORCH_CHECK(targets.is_cpu() && targets.scalar_type() == ScalarType::Long && targets.numel() == rows.count &&
                      targets.is_contiguous(),
                  "targets: a contiguous CPU int64 tensor with one value for each row of x is expected");
  const auto* target = static_cast<const int64_t*>(targets.const_data_ptr());
  for (int64_t i = 0; i < rows.count; ++i)
    STD_TORCH_CHECK(target[i] == ignore_index || (0 <= target[i] && target[i] < vocab), "targets: ", target[i],
                    " is outside [0, ", vocab, ")");
  Tensor result = new_tensor(x, std::vector<int64_t>(targets.sizes().begin(), targets.sizes().end()), ScalarType::Float);
  auto* loss = static_cast<float*>(result.mutable_data_ptr());

  const Const scale = vector(norm, rows.width, "norm");
  Losses losses(target, rows.count);
  if (has_own_gemm(k, w.type)) {
    std::optional<Tensor> large;
    const char* packed = pack_rows(k, rows, scale, float(eps), w.type, large);
    VocabBlocks blocks{k, packed, rows.width, w, bias, vocab, Groups(k, w.type, rows.width, rows.count), losses, nullptr, nullptr};
    std::vector<float> maximum(blocks.blocks() * rows.count, -INFINITY), sum(maximum.size(), 0.0f);
    blocks.maximum = maximum.data(), blocks.sum = sum.data();
    ThreadTeam team(1);
    team.run([&](ThreadTeam::Member& member) { member.run(blocks); });
    blocks.join();
    losses.write(ignore_index, loss);
    return result;
  }
  if (w.type == DType::compressed_bf16) {
    weight = decompressed(k, w, vocab, rows.width);
    w = matrix(weight, rows.width, "weight");
  }
  const Tensor h = float_rows(k, rows, scale, float(eps));
  const int64_t tile_rows = std::min(kTileRows, rows.count), tile_vocab = std::min(kTileVocab, vocab);
  Tensor store = w.type == DType::f32 ? x : new_tensor(x, {tile_vocab, rows.width}, ScalarType::Float);
  const bool onednn = takes_onednn(w.type == DType::f32 ? weight : store);
  Tensor logits = onednn ? x : new_tensor(x, {tile_rows * tile_vocab}, ScalarType::Float);  // oneDNN brings its own
  for (int64_t v = 0; v < vocab; v += tile_vocab) {
    const int64_t width = std::min(tile_vocab, vocab - v);
    const Tensor part = float_weight(k, weight, w, v, v + width, store);
    for (int64_t r = 0; r < rows.count; r += tile_rows) {
      const int64_t height = std::min(tile_rows, rows.count - r);
      Tensor hs = h;
      hs = torch::stable::narrow(hs, 0, r, height);
      const Tensor tile = onednn ? onednn_linear(hs, part, "none") : mm_into(logits, hs, part);
      auto* values = static_cast<float*>(tile.mutable_data_ptr());
      parallel(height, height * width * 4, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          float* row = values + i * width;
          if (bias.data) k.add(row, nullptr, DType::f32, bias.at(v), bias.type, width, row, DType::f32);
          const int64_t t = target[r + i] - v;
          if (0 <= t && t < width) losses.hit[r + i] = row[t];
          k.log_sum_exp(row, width, &losses.maximum[r + i], &losses.sum[r + i]);
        }
      });
    }
  }
  losses.write(ignore_index, loss);
  return result;
}

Tensor cross_entropy_gradient(Tensor logits, Tensor targets, double scale) {
  const Kernels& k = kernels();
  STD_TORCH_CHECK(logits.is_cpu() && logits.dim() == 2 && logits.is_contiguous(),
                  "logits: a contiguous CPU matrix [rows, vocabulary] is expected");
  const int64_t rows = logits.size(0), vocab = logits.size(1);
  const int64_t* target = check_places("targets", targets, {rows}, vocab);
  const Mut values = {logits.mutable_data_ptr(), dtype_of(logits, "logits"), vocab};
  Tensor result = new_tensor(logits, {rows}, ScalarType::Float);
  auto* loss = static_cast<float*>(result.mutable_data_ptr());
  parallel(rows, rows * vocab * 4, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m)
      loss[m] = k.cross_entropy_gradient(values.row(m), values.type, vocab, target[m], float(scale));
  });
  return result;
}

}  // namespace pyprune::cpu

STABLE_TORCH_LIBRARY_IMPL(pyprune, CPU, m) {
  m.impl("linear_cross_entropy", TORCH_BOX(&pyprune::cpu::linear_cross_entropy));
  m.impl("cross_entropy_gradient", TORCH_BOX(&pyprune::cpu::cross_entropy_gradient));
}

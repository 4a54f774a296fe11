// The head and the loss in one: a tile of logits lives only until it has been summed. Contract: pyprune/ops/schemas.py.
#include "loss.h"

#include <algorithm>
#include <cmath>

#include "gemm.h"

namespace pyprune::cpu {

Tensor linear_cross_entropy(Tensor x, Tensor weight, Tensor targets, Optional norm, double eps, Optional bias_tensor,
                            int64_t ignore_index) {
  // Tiles of 1024 x 1024 float32 logits, 4 MB: large enough for GEMM to run at full speed, small enough for L2/L3.
  constexpr int64_t kTileRows = 1024, kTileVocab = 1024;
  const Kernels& k = kernels();
  const Rows rows(x, "x");
  Const w = matrix(weight, rows.width, "weight");
  if (w.type == DType::bf12) {
    weight = decompressed(k, w, weight.size(0), rows.width);
    w = matrix(weight, rows.width, "weight");
  }
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

  const Tensor h = float_rows(k, rows, vector(norm, rows.width, "norm"), float(eps));
  std::vector<float> maximum(rows.count, -INFINITY), sum(rows.count, 0.0f), hit(rows.count, 0.0f);
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
          if (0 <= t && t < width) hit[r + i] = row[t];
          k.log_sum_exp(row, width, &maximum[r + i], &sum[r + i]);
        }
      });
    }
  }
  for (int64_t i = 0; i < rows.count; ++i)
    loss[i] = target[i] == ignore_index ? 0.0f : maximum[i] - hit[i] + std::log(sum[i]);
  return result;
}

}  // namespace pyprune::cpu

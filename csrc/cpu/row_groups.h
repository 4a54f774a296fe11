// GEMM by the skinny kernels: the activation rows go in groups that stay in a core's L2 while the weights pass, and a group
// in spans that the kernels take at once: a row's result has the same bits whatever the rows beside it.
#pragma once

#include <algorithm>
#include <optional>

#include "thread_team.h"
#include "tensors.h"

namespace pyprune::cpu {

// Bytes of packed activations in a group, where a span is no longer.
inline constexpr int64_t kHeldBytes = 384 << 10;
// Activation rows of a span at most: whole tiles of six, or of 16 where those lie together; and at least, where rows are long.
inline constexpr int64_t kSpan = 60, kSpanTogether = 48, kShortestSpan = 24;

// How `count` activation rows of a stage are cut; in as few groups as will do, until somebody wants more.
struct Groups {
  int64_t count, together, span, groups;

  Groups(const Kernels& k, DType weight_type, int64_t width, int64_t count) : count(count), together(k.packed_together(weight_type)) {
    const int64_t most = together > 1 ? kSpanTogether : kSpan, row_bytes = std::max<int64_t>(1, k.packed_bytes(weight_type, width, 1));
    span = std::clamp(kHeldBytes / row_bytes / 12 * 12, kShortestSpan, most);
    span = (span + together - 1) / together * together;
    const int64_t rows = std::max<int64_t>(1, kHeldBytes / (span * row_bytes)) * span;
    groups = (count + rows - 1) / rows;
  }

  // Calls f(span, whether it is the last one) for group `index`; groups and spans are as even as can be.
  template <class F>
  void each(int64_t index, const F& f) const {
    const Span group = share({0, count}, index, groups);
    const int64_t spans = (group.count() + span - 1) / span;
    for (int64_t i = 0; i < spans; ++i) f(share(group, i, spans), i + 1 == spans);
  }

 private:
  // Part `index` of `parts`; packed rows that lie together stay together.
  Span share(Span whole, int64_t index, int64_t parts) const {
    const int64_t blocks = (whole.count() + together - 1) / together;
    return {whole.begin + blocks * index / parts * together,
            std::min(whole.end, whole.begin + blocks * (index + 1) / parts * together)};
  }
};

// A stage of weights over all groups; a task is one of the stage's for one group, group after group.
template <class Stage>
struct Grouped {
  Stage stage;
  Groups groups;

  int64_t tasks() const { return groups.groups * stage.tasks(); }
  int64_t bytes() const { return groups.groups * stage.bytes(); }
  void operator()(int64_t task) const {
    const int64_t block = task % stage.tasks(), after = (block + 1) % stage.tasks();
    const void *own = stage.reads(block, block + 1).data, *next = stage.reads(after, after + 1).data;
    groups.each(task / stage.tasks(), [&](Span span, bool last) { stage.multiply(block, block + 1, span, last ? next : own); });
  }

  // The share of the time that `threads` are at work, all tasks taking as long.
  double busy(int64_t threads) const { return double(tasks()) / double((tasks() + threads - 1) / threads * threads); }
};

// Cuts a stage so that the threads have as much to do each as can be: more groups than must be, and smaller blocks of weight
// rows where the stage's are not given by heads, if that makes up for what each costs.
template <class Stage>
Grouped<Stage> cut_evenly(Grouped<Stage> grouped, int64_t threads) {
  constexpr bool has_blocks = !std::is_same_v<Stage, Qkv>;
  constexpr int64_t least_block = 16, group_costs = 2, block_costs = 1;  // in hundredths: a group more, 16 rows less
  const int64_t least = grouped.groups.groups, most = std::max(least, std::min(least + threads - 1, grouped.groups.count / kShortestSpan));
  double gain = -1.0;
  int64_t chosen_block = kGemmBlock, chosen_groups = least;
  for (int64_t block = kGemmBlock; block >= least_block; block -= has_blocks ? 4 : kGemmBlock)
    for (int64_t groups = least; groups <= most; ++groups) {
      if constexpr (has_blocks) grouped.stage.block = block;
      grouped.groups.groups = groups;
      const double costs = double(group_costs * (groups - least)) + double(block_costs * (kGemmBlock - block)) / 16;
      if (grouped.busy(threads) - costs / 100 <= gain) continue;
      gain = grouped.busy(threads) - costs / 100;
      chosen_block = block;
      chosen_groups = groups;
    }
  if constexpr (has_blocks) grouped.stage.block = chosen_block;
  grouped.groups.groups = chosen_groups;
  return grouped;
}

// x packed for weights of `type`, normalised where norm is given: a thread's memory, or `large` for a GEMM.
inline const char* pack_rows(const Kernels& k, const Rows& x, const Const& norm, float eps, DType type, std::optional<Tensor>& large) {
  Pack pack{k, x.matrix(), norm, eps, type, nullptr};
  if (x.count > kSkinnyRows) large = new_tensor(x.tensor, {pack.packed_bytes() + 64}, ScalarType::Byte);
  const auto address = large ? reinterpret_cast<uintptr_t>(large->mutable_data_ptr()) : 0;
  pack.data = large ? reinterpret_cast<char*>((address + 63) / 64 * 64) : scratch<0>(pack.packed_bytes());
  run(pack);
  return pack.data;
}

// Whether our kernels do the GEMMs by weights stored as `type`, and not torch.
bool has_own_gemm(const Kernels& k, DType type);

// Packs x and runs a stage of weights on it; false, and nothing is done, where torch's GEMM is to do the products.
template <class Stage>
bool run_packed(Stage& stage, const Rows& x, const Const& norm, float eps, DType type) {
  if (x.count > kSkinnyRows && !has_own_gemm(stage.k, type)) return false;
  std::optional<Tensor> large;
  stage.x = pack_rows(stage.k, x, norm, eps, type, large);
  if (x.count <= kSkinnyRows) {
    run(stage);
    return true;
  }
  ThreadTeam team(1);
  const auto grouped = cut_evenly(Grouped<Stage>{stage, Groups(stage.k, type, x.width, x.count)}, team.size());
  team.run([&](ThreadTeam::Member& member) { member.run(grouped); });
  return true;
}

}  // namespace pyprune::cpu

// Exhaustive over small sizes: csrc/cuda/row_cover.h covers every element of every row exactly once, with 16-byte loads
// that are aligned and inside the row, and every row of a matrix falls to exactly one place of one block.
#include "../../csrc/cuda/row_cover.h"

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <vector>

using namespace pyprune::cuda;

namespace {

void expect(bool good, const char* what) {
  if (good) return;
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

// Every (phase, K): chunks and edges together are the row, and only partial slots are left to the edges.
long check_rows(int size) {
  const int v = kWideBytes / size;
  long cases = 0;
  for (int phase = 0; phase < v; ++phase)
    for (int k = 0; k <= 20 * v + 3; ++k, ++cases) {
      const RowCover c = cover_row(phase, k, v);
      std::vector<int> reads(k);
      for (int chunk = 0; chunk < c.chunks; ++chunk) {
        const int begin = c.head + chunk * v;
        expect((phase + begin) % v == 0, "a chunk is not aligned");
        expect(begin >= 0 && begin + v <= k, "a chunk leaves its row");
        expect((phase + begin) / v == c.first + chunk, "a chunk is not in its slot");
        for (int i = 0; i < v; ++i) ++reads[begin + i];
      }
      expect(c.edges() <= 32, "more edges than a warp has lanes");
      for (int e = 0; e < c.edges(); ++e) {
        const int element = c.edge_element(e, k);
        expect(0 <= element && element < k, "an edge leaves its row");
        ++reads[element];
      }
      for (const int count : reads) expect(count == 1, "an element is not read exactly once");
      expect(c.head < v && c.tail < v, "a whole slot is left to the edges");
      expect(k == 0 || (phase + k - 1) / v + 1 == c.slots, "the last slot is wrong");

      // Panels of any width hold every slot exactly once, and chunks where the kernel looks for them.
      for (int width = 1; width <= 8; ++width) {
        const int panels = larger(1, ceil_div(c.chunks, width));
        std::vector<int> held(c.slots);
        for (int p = 0; p < panels; ++p) {
          const Panel panel = panel_of(c, p, panels, width);
          expect(panel.end - panel.begin <= width + 2, "a panel needs more room than planned");
          for (int s = panel.begin; s < panel.end; ++s) ++held[s];
          for (int chunk = p * width; chunk < smaller(c.chunks, (p + 1) * width); ++chunk) {
            expect(panel.begin <= c.first + chunk && c.first + chunk < panel.end, "a chunk is not in its panel");
            expect(c.first + chunk - panel.begin == (p ? 0 : c.first) + chunk - p * width, "a chunk is not in its place");
          }
        }
        for (const int count : held) expect(count == 1, "a slot is not in exactly one panel");
      }
    }
  return cases;
}

// Every (n, rows of a block, stride, address): each row once, and one phase for all rows of a block.
long check_blocks(int size) {
  const int v = kWideBytes / size;
  long cases = 0;
  for (int n = 1; n <= 70; ++n)
    for (int count = 1; count <= 32; count = count < 4 ? count + 1 : count * 2)
      for (int stride = 1; stride <= 2 * v; ++stride, ++cases) {
        const int period = phase_period(stride, v), blocks = block_count(n, count, period);
        std::vector<int> taken(n);
        for (int b = 0; b < blocks; ++b) {
          const int phase = phase_of(uint64_t(size) * (stride + 3), block_row(b, 0, count, period), stride, size);
          for (int i = 0; i < count; ++i) {
            const int row = block_row(b, i, count, period);
            expect(row >= 0, "a row below zero");
            if (row >= n) continue;
            ++taken[row];
            expect(phase_of(uint64_t(size) * (stride + 3), row, stride, size) == phase, "two phases in a block");
          }
        }
        for (const int times : taken) expect(times == 1, "a row is not taken exactly once");
        for (int shorter = 1; shorter < period; ++shorter)
          expect(shorter * stride % v != 0, "the period is longer than it need be");
      }
  return cases;
}

}  // namespace

int main() {
  long cases = 0;
  for (const int size : {2, 4}) cases += check_rows(size) + check_blocks(size);
  std::printf("passed %ld cases\n", cases);
}

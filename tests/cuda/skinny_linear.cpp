// Runs the kernel of csrc/cuda/skinny_linear.cuh in the emulator on random cases and compares with float64.
//   skinny_linear TYPE ROWS MATRICES CASES SEED     TYPE: f32, bf16, f16
#include "emulator.h"

#include "../../csrc/cuda/skinny_linear.cuh"

using namespace pyprune::cuda;

namespace {

std::mt19937 dice;
int draw(int low, int high) { return low + int(dice() % uint32_t(high - low + 1)); }
bool chance(int percent) { return draw(1, 100) <= percent; }
float noise() { return float(dice()) / 2147483648.0f - 1.0f; }

// `count` numbers of type T or float, at an address whose remainder by 64 is `offset` elements.
template <class T>
struct Vector {
  bool is_float;
  std::vector<char> memory;
  char* data;

  Vector(int64_t count, bool as_float, int offset) : is_float(as_float), memory(count * 4 + 256) {
    data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) + offset * (as_float ? 4 : int(sizeof(T)));
  }
  float at(int64_t i) const {
    return is_float ? reinterpret_cast<const float*>(data)[i] : widen(reinterpret_cast<const T*>(data)[i]);
  }
  void set(int64_t i, float value) {
    if (is_float) reinterpret_cast<float*>(data)[i] = value;
    else narrow(value, reinterpret_cast<T*>(data)[i]);
  }
  void fill(int64_t count, float scale, float shift = 0) {
    for (int64_t i = 0; i < count; ++i) set(i, noise() * scale + shift);
  }
};

template <class W>
double rounded(double value) {
  W result;
  narrow(float(value), result);
  return widen(result);
}

template <class W, int kRows, int kMatrices>
void check(int index) {
  constexpr int v = kWideBytes / int(sizeof(W));
  const int k = chance(20) ? draw(0, 2 * v) : chance(40) ? draw(1000, 900 * v) : draw(1, 400);
  const int n = draw(1, k > 400 ? 24 : 130);
  const bool with_norm = k > 0 && chance(60), with_residual = kMatrices == 1 && chance(50), skip = chance(10);
  const bool x_float = chance(50), out_float = chance(50), norm_float = chance(50);

  Arguments a;
  a.n = n;
  a.k = k;
  a.eps = 1e-5f;
  a.weight_type = sizeof(W) == 4 ? DType::f32 : DType::bf16;  // only its size matters for the plan
  a.x_is_float = x_float || sizeof(W) == 4;
  a.out_is_float = out_float || sizeof(W) == 4;
  a.norm_is_float = norm_float || sizeof(W) == 4;

  // Both matrices lie in one piece of memory, filled with NaN: what is read beside a row shows.
  const int gap[2] = {draw(0, v - 1), draw(0, v - 1)};
  const bool alike = chance(50);
  int64_t stride[2], start[2];
  stride[0] = std::max(1, k + (chance(40) ? 0 : draw(0, 2 * v)));
  stride[1] = alike ? stride[0] : std::max(1, k + draw(0, 2 * v));
  start[0] = gap[0];
  start[1] = (start[0] + n * stride[0] + 64) / 64 * 64 + (alike ? gap[0] : gap[1]);
  const int64_t total = start[1] + n * stride[1] + 64;
  Vector<W> weights(total, sizeof(W) == 4, 0);
  for (int64_t i = 0; i < total; ++i) weights.set(i, NAN);
  for (int w = 0; w < kMatrices; ++w)
    for (int r = 0; r < n; ++r)
      for (int e = 0; e < k; ++e) weights.set(start[w] + r * stride[w] + e, noise());
  const int64_t inputs = int64_t{kRows} * k, outputs = int64_t{kRows} * n;
  Vector<W> x(inputs, a.x_is_float, draw(0, 3)), norm(k, a.norm_is_float, draw(0, 3));
  Vector<W> residual(outputs, a.out_is_float, draw(0, 3)), out(outputs + 8, a.out_is_float, draw(0, 3));
  std::vector<Vector<W>> bias;
  x.fill(inputs, 2.0f);
  norm.fill(k, 0.3f, 1.0f);
  residual.fill(outputs, 1.0f);
  out.fill(outputs + 8, 0.0f, NAN);
  bool has_bias[2] = {};
  for (int w = 0; w < 2; ++w) {
    bias.emplace_back(n, sizeof(W) == 4 || chance(50), draw(0, 3));
    bias[w].fill(n, 1.0f);
  }
  for (int w = 0; w < kMatrices; ++w) {
    a.weight[w] = weights.data + start[w] * int64_t(sizeof(W));
    a.stride[w] = stride[w];
    has_bias[w] = chance(50);
    if (has_bias[w]) a.bias[w] = bias[w].data;
    a.bias_is_float[w] = bias[w].is_float;
    emulator::matrices[w] = {};
    emulator::matrices[w].data = static_cast<const char*>(a.weight[w]);
    emulator::matrices[w].n = k ? n : 0;
    emulator::matrices[w].k = k;
    emulator::matrices[w].stride = stride[w];
    emulator::matrices[w].size = sizeof(W);
    emulator::matrices[w].reads.assign(size_t(n) * k, 0);
  }
  a.x = x.data;
  a.norm = with_norm ? norm.data : nullptr;
  a.residual = with_residual ? residual.data : nullptr;
  a.out = out.data;
  const bool flag = skip;
  a.skip = skip || chance(30) ? &flag : nullptr;

  // A small device, so that small shapes reach every layout; too little shared memory, so that x comes in panels.
  const int processors = chance(50) ? 1 : draw(1, 12);
  const Device device{processors, chance(40) ? 2048 + 16 * draw(1, 600) : 99 * 1024, 100 * 1024};
  a.plan = plan_of(a, kRows, kMatrices, device);
  const int slots = ceil_div(k + v - 1, v);
  if (chance(50)) {  // any layout must give the same, not only those that plan_of chooses
    Plan& p = a.plan;
    p.split = 1 << draw(0, 3);
    p.rows_per_warp = draw(1, 4);
    p.steps_per_panel = draw(1, 3);
    p.panel_slots = p.steps_per_panel * loads_in_flight(kMatrices) / kMatrices * 32 * p.split + 2;
    p.shared_bytes = p.panel_slots * kWideBytes * kRows * p.copies;
    p.blocks = block_count(n, kWarps / p.split * p.rows_per_warp, p.period);
  }
  for (int block = 0; block < a.plan.blocks; ++block)
    emulator::run_block(block, a.plan.shared_bytes, [&] { skinny_linear<W, kRows, kMatrices>(a); });

  char what[200];
  const auto fail_case = [&](const char* reason) {
    std::snprintf(what, sizeof(what), "%s; case %d: n %d, k %d, strides %ld %ld, split %d, rows %d, period %d, copies %d, steps %d",
                  reason, index, n, k, long(stride[0]), long(stride[1]), a.plan.split, a.plan.rows_per_warp, a.plan.period,
                  a.plan.copies, a.plan.steps_per_panel);
    fail(what);
  };
  if (!skip)
    for (int w = 0; w < kMatrices; ++w) {
      int64_t chunks = 0;
      for (const int reads : emulator::matrices[w].reads)
        if (reads != 1) fail_case("a weight is not read exactly once");
      for (int r = 0; r < n; ++r)
        chunks += cover_row(phase_of(reinterpret_cast<uint64_t>(a.weight[w]), r, stride[w], sizeof(W)), k, v).chunks;
      if (emulator::matrices[w].wide_loads != chunks) fail_case("not every whole 16 bytes of a row are loaded at once");
    }

  for (int m = 0; m < kRows; ++m) {
    double squares = 0;
    for (int e = 0; e < k; ++e) squares += double(x.at(int64_t(m) * k + e)) * x.at(int64_t(m) * k + e);
    const double scale = 1 / std::sqrt(squares / k + a.eps);
    for (int r = 0; r < n; ++r) {
      double sum[2] = {}, size[2] = {};
      for (int w = 0; w < kMatrices; ++w) {
        for (int e = 0; e < k; ++e) {
          const double h = with_norm ? x.at(int64_t(m) * k + e) * scale * norm.at(e) : x.at(int64_t(m) * k + e);
          const double product = rounded<W>(h) * weights.at(start[w] + r * stride[w] + e);
          sum[w] += product;
          size[w] += std::abs(product);
        }
        if (has_bias[w]) sum[w] += bias[w].at(r);
      }
      double expected = kMatrices == 2 ? sum[0] / (1 + std::exp(-sum[0])) * sum[1] : sum[0];
      // Where x is rounded, float32 and float64 may round to different neighbours: a few of the type's own steps.
      const double step = with_norm && sizeof(W) == 2 ? (sizeof(W) == 2 && std::is_same_v<W, Bf16> ? 4e-3 : 5e-4) : 1e-6;
      double allowed = 1e-6 + 0.05 * step * size[0] + 2e-6 * size[0];
      if (kMatrices == 2) allowed = allowed * (1 + std::abs(sum[1])) * 1.2 + (0.05 * step + 2e-6) * size[1] * (1 + std::abs(sum[0]));
      if (with_residual) expected += residual.at(int64_t(m) * n + r);
      if (skip) expected = with_residual ? residual.at(int64_t(m) * n + r) : 0, allowed = 0;
      const double actual = out.at(int64_t(m) * n + r);
      if (!out.is_float) allowed += std::abs(expected) * (std::is_same_v<W, Bf16> ? 4e-3 : 5e-4);
      if (!(std::abs(actual - expected) <= allowed)) {
        std::printf("row %d, column %d: %.9g, expected %.9g within %.3g\n", m, r, actual, expected, allowed);
        fail_case("a wrong result");
      }
    }
  }
  for (int i = 0; i < 8; ++i)
    if (out.at(outputs + i) == out.at(outputs + i)) fail_case("something is written past the output");
  const bool panels = a.plan.panel_slots < slots;
  std::printf("plan split=%d rows=%d period=%d copies=%d panels=%d\n", a.plan.split, a.plan.rows_per_warp, a.plan.period,
              a.plan.copies, int(panels));
}

template <class W>
void check_all(int rows, int matrices, int cases) {
  for (int i = 0; i < cases; ++i) {
    if (rows == 1 && matrices == 1) check<W, 1, 1>(i);
    if (rows == 2 && matrices == 1) check<W, 2, 1>(i);
    if (rows == 1 && matrices == 2) check<W, 1, 2>(i);
    if (rows == 2 && matrices == 2) check<W, 2, 2>(i);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int rows = std::atoi(argv[2]), matrices = std::atoi(argv[3]), cases = std::atoi(argv[4]);
  dice.seed(uint32_t(std::atoi(argv[5])));
  if (!std::strcmp(argv[1], "f32")) check_all<float>(rows, matrices, cases);
  if (!std::strcmp(argv[1], "bf16")) check_all<Bf16>(rows, matrices, cases);
  if (!std::strcmp(argv[1], "f16")) check_all<Half>(rows, matrices, cases);
  std::printf("passed %d cases\n", cases);
}

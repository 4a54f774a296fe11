// Runs the kernel of csrc/cuda/skinny_linear.cuh in the emulator on random cases and compares with float64.
//   skinny_linear TYPE ROWS FORM CASES SEED     TYPE: f32, bf16, f16; FORM: linear, gate_up, qkv_rope
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

// Rows of noise, `stride` elements apart, with NaN between them.
template <class T>
void fill_rows(Vector<T>& x, int rows, int k, int stride) {
  for (int64_t i = 0; i < int64_t(rows) * stride; ++i) x.set(i, i % stride < k ? 2 * noise() : NAN);
}

template <class W>
double rounded(double value) {
  W result;
  narrow(float(value), result);
  return widen(result);
}

// The layout for a small device, so that small shapes reach every kind, some with too little shared memory for x; or any
// layout: all must give the same, not only those that plan_of chooses.
template <class W>
void lay_out(Arguments& a, int rows, int matrices) {
  const Device device{chance(50) ? 1 : draw(1, 12), chance(40) ? 2048 + 16 * draw(1, 600) : 99 * 1024, 100 * 1024};
  a.plan = plan_of(a, rows, matrices, device);
  if (chance(50)) return;
  Plan& p = a.plan;
  p.split = 1 << draw(0, 3);
  p.rows_per_warp = draw(1, 4);
  p.steps_per_panel = draw(1, 3);
  p.panel_slots = p.steps_per_panel * loads_in_flight(matrices) / matrices * 32 * p.split + 2;
  p.shared_bytes = p.panel_slots * kWideBytes * rows * p.copies;
  p.blocks = block_count(a.n, kWarps / p.split * p.rows_per_warp, p.period);
}

template <class W, int kRows, Form kForm>
void check(int index) {
  constexpr int kMatrices = matrices_of(kForm);
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
  // So do the rows of x and of the result, which may lie apart too.
  a.x_stride = k + (chance(50) ? 0 : draw(0, 2 * v));
  a.out_stride = n + (chance(50) ? 0 : draw(0, 2 * v));
  const int64_t outputs = int64_t{kRows} * a.out_stride;
  Vector<W> x(int64_t{kRows} * a.x_stride, a.x_is_float, draw(0, 3)), norm(k, a.norm_is_float, draw(0, 3));
  Vector<W> residual(int64_t{kRows} * n, a.out_is_float, draw(0, 3)), out(outputs + 8, a.out_is_float, draw(0, 3));
  std::vector<Vector<W>> bias;
  fill_rows(x, kRows, k, a.x_stride);
  norm.fill(k, 0.3f, 1.0f);
  residual.fill(int64_t{kRows} * n, 1.0f);
  out.fill(outputs + 8, 0.0f, NAN);
  bool has_bias[2] = {};
  for (int w = 0; w < 2; ++w) {
    bias.emplace_back(n, sizeof(W) == 4 || chance(50), draw(0, 3));
    bias[w].fill(n, 1.0f);
  }
  emulator::matrices[2] = {};
  emulator::matrices[1] = {};
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

  lay_out<W>(a, kRows, kMatrices);
  const int slots = ceil_div(k + v - 1, v);
  for (int block = 0; block < a.plan.blocks; ++block)
    emulator::run_block(block, a.plan.shared_bytes, [&] { skinny_linear<W, kRows, kForm>(a); });

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
  else
    for (const auto& matrix : emulator::matrices)
      for (const int reads : matrix.reads)
        if (reads) fail_case("a weight of a skipped unit is read");

  for (int m = 0; m < kRows; ++m) {
    double squares = 0;
    for (int e = 0; e < k; ++e) squares += double(x.at(int64_t(m) * a.x_stride + e)) * x.at(int64_t(m) * a.x_stride + e);
    const double scale = 1 / std::sqrt(squares / k + a.eps);
    for (int r = 0; r < n; ++r) {
      double sum[2] = {}, size[2] = {};
      for (int w = 0; w < kMatrices; ++w) {
        for (int e = 0; e < k; ++e) {
          const double value = x.at(int64_t(m) * a.x_stride + e), h = with_norm ? value * scale * norm.at(e) : value;
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
      const double actual = out.at(int64_t(m) * a.out_stride + r);
      if (!out.is_float) allowed += std::abs(expected) * (std::is_same_v<W, Bf16> ? 4e-3 : 5e-4);
      if (!(std::abs(actual - expected) <= allowed)) {
        std::printf("row %d, column %d: %.9g, expected %.9g within %.3g\n", m, r, actual, expected, allowed);
        fail_case("a wrong result");
      }
    }
  }
  for (int64_t i = 0; i < outputs + 8; ++i)
    if ((i >= outputs || i % a.out_stride >= n) && out.at(i) == out.at(i)) fail_case("something is written beside the output");
  const bool panels = a.plan.panel_slots < slots;
  std::printf("plan split=%d rows=%d period=%d copies=%d panels=%d\n", a.plan.split, a.plan.rows_per_warp, a.plan.period,
              a.plan.copies, int(panels));
}

// Queries, keys and values of one or two tokens, of one sequence or two; positions and slots sometimes out of range.
template <class W, int kRows>
void check_qkv(int index) {
  constexpr int v = kWideBytes / int(sizeof(W));
  const int k = chance(20) ? draw(1, 2 * v) : chance(30) ? draw(1000, 500 * v) : draw(1, 400);
  const int heads = draw(1, 3), kv_heads = draw(1, 2), half = draw(1, k > 400 ? 4 : 12), length = draw(1, 6);
  const int counts[3] = {heads, kv_heads, kv_heads}, dim = 2 * half, batch = chance(50) ? kRows : 1;
  const bool skip = chance(10), own_slots = chance(40), with_norm = chance(70);
  Arguments a;
  Heads& h = a.heads;
  a.k = k;
  a.n = (heads + 2 * kv_heads) * half;
  a.eps = 1e-5f;
  a.weight_type = sizeof(W) == 4 ? DType::f32 : DType::bf16;
  a.x_is_float = sizeof(W) == 4 || chance(40);
  a.norm_is_float = sizeof(W) == 4 || chance(50);
  a.out_is_float = a.x_is_float;
  h.heads = heads, h.kv_heads = kv_heads, h.half = half, h.tokens = kRows / batch;
  a.x_stride = k + (chance(50) ? 0 : draw(0, 2 * v));
  Vector<W> x(int64_t{kRows} * a.x_stride, a.x_is_float, draw(0, 3)), norm(k, a.norm_is_float, draw(0, 3));
  fill_rows(x, kRows, k, a.x_stride);
  norm.fill(k, 0.3f, 1.0f);
  a.x = x.data;
  a.norm = with_norm ? norm.data : nullptr;
  std::vector<Vector<W>> weights, bias, caches;
  for (int s = 0; s < 3; ++s) {
    h.stride[s] = (k + v - 1) / v * v + v * draw(0, 1);
    const int64_t total = int64_t(counts[s]) * dim * h.stride[s];
    weights.emplace_back(total, sizeof(W) == 4, 0);
    for (int64_t i = 0; i < total; ++i) weights[s].set(i, i % h.stride[s] < k ? noise() : NAN);
    bias.emplace_back(counts[s] * dim, sizeof(W) == 4 || chance(50), draw(0, 3));
    bias[s].fill(counts[s] * dim, 1.0f);
    h.bias_is_float[s] = bias[s].is_float;
  }
  bool has_bias[3];
  for (int s = 0; s < 3; ++s) {
    h.weight[s] = weights[s].data;
    has_bias[s] = chance(50);
    if (has_bias[s]) h.bias[s] = bias[s].data;
    auto& matrix = emulator::matrices[s] = {};
    matrix.data = weights[s].data;
    matrix.n = counts[s] * dim, matrix.k = k, matrix.stride = h.stride[s], matrix.size = sizeof(W);
    matrix.reads.assign(size_t(matrix.n) * k, 0);
  }
  a.weight[0] = a.weight[1] = h.weight[0];
  a.stride[0] = a.stride[1] = h.stride[0];
  const int64_t limit = own_slots ? length + draw(0, 4) : draw(1, length);
  std::vector<float> cos(limit * half), sin(limit * half);
  for (int64_t i = 0; i < limit * half; ++i) {
    const float angle = 3 * noise();
    cos[i] = std::cos(angle), sin[i] = std::sin(angle);
  }
  h.cos = cos.data(), h.sin = sin.data(), h.cos_stride = h.sin_stride = half;
  h.limit = limit, h.slot_limit = length;
  int64_t positions[kRows], slots[kRows];
  for (int m = 0; m < kRows; ++m) positions[m] = draw(-1, int(limit)), slots[m] = draw(-1, length);
  if (kRows == 2 && batch == 1 && slots[0] == slots[1]) slots[1] = -1;  // two tokens never have one place
  if (kRows == 2 && batch == 1 && positions[0] == positions[1]) positions[1] = -1;
  h.positions = positions;
  h.slots = own_slots ? slots : nullptr;
  for (int i = 0; i < 2; ++i) {
    h.row_stride[i] = dim + draw(0, 3);
    h.head_stride[i] = h.row_stride[i] * length + draw(0, 3);
    h.batch_stride[i] = h.head_stride[i] * kv_heads + draw(0, 3);
    caches.emplace_back(h.batch_stride[i] * batch, sizeof(W) == 4, draw(0, 3));
    caches[i].fill(h.batch_stride[i] * batch, 0.0f, NAN);
  }
  for (int i = 0; i < 2; ++i) h.cache[i] = caches[i].data;
  const int64_t outputs = int64_t{kRows} * heads * dim;
  Vector<W> out(outputs + 8, a.out_is_float, draw(0, 3));
  out.fill(outputs + 8, 0.0f, 77.0f);
  a.out = out.data;
  a.skip = skip || chance(30) ? &skip : nullptr;
  lay_out<W>(a, kRows, 2);
  for (int block = 0; block < a.plan.blocks; ++block)
    emulator::run_block(block, a.plan.shared_bytes, [&] { skinny_linear<W, kRows, Form::qkv_rope>(a); });

  char what[200];
  const auto fail_case = [&](const char* reason) {
    std::snprintf(what, sizeof(what), "%s; qkv case %d: heads %d and %d of %d, k %d, split %d, rows %d", reason, index, heads,
                  kv_heads, dim, k, a.plan.split, a.plan.rows_per_warp);
    fail(what);
  };
  if (!skip)
    for (const auto& matrix : emulator::matrices)
      for (const int reads : matrix.reads)
        if (reads != 1) fail_case("a weight is not read exactly once");
  if (skip)
    for (const auto& matrix : emulator::matrices)
      for (const int reads : matrix.reads)
        if (reads) fail_case("a weight of a skipped unit is read");
  int64_t written = 0;
  for (int m = 0; m < kRows; ++m) {
    double squares = 0;
    for (int e = 0; e < k; ++e) squares += double(x.at(int64_t(m) * a.x_stride + e)) * x.at(int64_t(m) * a.x_stride + e);
    const double scale = with_norm ? 1 / std::sqrt(squares / k + a.eps) : 1;
    const int64_t position = positions[m], slot = own_slots ? slots[m] : position;
    const bool known = 0 <= position && position < limit && 0 <= slot && slot < length;
    for (int s = 0; s < 3; ++s)
      for (int head = 0; head < counts[s]; ++head)
        for (int i = 0; i < half; ++i) {
          double sum[2] = {}, size = 0;
          for (int w = 0; w < 2; ++w) {
            const int row = head * dim + w * half + i;
            for (int e = 0; e < k; ++e) {
              const double value = x.at(int64_t(m) * a.x_stride + e) * scale * (with_norm ? norm.at(e) : 1);
              const double product = rounded<W>(value) * weights[s].at(row * h.stride[s] + e);
              sum[w] += product;
              size += std::abs(product);
            }
            if (has_bias[s]) sum[w] += bias[s].at(row);
          }
          const double c = known && s < 2 ? cos[position * half + i] : 1, n = known && s < 2 ? sin[position * half + i] : 0;
          const double turned[2] = {sum[0] * c - sum[1] * n, sum[1] * c + sum[0] * n};
          for (int w = 0; w < 2; ++w) {
            double expected = turned[w], actual;
            bool narrow_type = sizeof(W) == 2;
            if (s == 0) {
              actual = out.at((int64_t(m) * heads + head) * dim + w * half + i);
              narrow_type = !out.is_float;
              if (skip) expected = 0;
              else if (!known) {
                if (actual == actual) fail_case("a query without a place is not NaN");
                continue;
              }
            } else {
              if (skip || !known) continue;
              actual = caches[s - 1].at(m / h.tokens * h.batch_stride[s - 1] + head * h.head_stride[s - 1] +
                                        slot * h.row_stride[s - 1] + w * half + i);
              ++written;
            }
            const double step = with_norm && sizeof(W) == 2 ? (std::is_same_v<W, Bf16> ? 4e-3 : 5e-4) : 1e-6;
            double allowed = 1e-6 + (0.05 * step + 2e-6) * size;
            if (narrow_type) allowed += (std::abs(expected)) * (std::is_same_v<W, Bf16> ? 4e-3 : 5e-4);
            if (skip) allowed = 0;
            if (!(std::abs(actual - expected) <= allowed)) {
              std::printf("row %d, section %d: %.9g, expected %.9g within %.3g\n", m, s, actual, expected, allowed);
              fail_case("a wrong result");
            }
          }
        }
  }
  int64_t filled = 0;
  for (int i = 0; i < 2; ++i)
    for (int64_t j = 0; j < h.batch_stride[i] * batch; ++j) filled += caches[i].at(j) == caches[i].at(j);
  if (filled != written) fail_case("something else was written in a cache");
  for (int i = 0; i < 8; ++i)
    if (out.at(outputs + i) != 77.0f) fail_case("something is written past the output");
}

template <class W, int kRows>
void check_form(const char* form, int cases) {
  for (int i = 0; i < cases; ++i) {
    if (!std::strcmp(form, "linear")) check<W, kRows, Form::linear>(i);
    if (!std::strcmp(form, "gate_up")) check<W, kRows, Form::gate_up>(i);
    if (!std::strcmp(form, "qkv_rope")) check_qkv<W, kRows>(i);
  }
}

template <class W>
void check_all(int rows, const char* form, int cases) {
  if (rows == 1) check_form<W, 1>(form, cases);
  if (rows == 2) check_form<W, 2>(form, cases);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 6) return 2;
  const int rows = std::atoi(argv[2]), cases = std::atoi(argv[4]);
  const char* form = argv[3];
  dice.seed(uint32_t(std::atoi(argv[5])));
  if (!std::strcmp(argv[1], "f32")) check_all<float>(rows, form, cases);
  if (!std::strcmp(argv[1], "bf16")) check_all<Bf16>(rows, form, cases);
  if (!std::strcmp(argv[1], "f16")) check_all<Half>(rows, form, cases);
  std::printf("passed %d cases\n", cases);
}

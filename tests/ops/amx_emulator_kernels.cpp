// The AMX table of kernels against float64, with its tile instructions emulated (see amx_emulator.h), trapped and
// emulated (amx_emulator_traps.cpp), or done by the processor (argument "hardware"). Prints the number of cases and a
// digest of the bits of all products.
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../../csrc/cpu/compressed_bf16_write.h"
#include "../../csrc/cpu/float16.h"
#include "../../csrc/cpu/kernels.h"
#include "amx_emulator.h"

namespace pyprune::cpu {
extern const Kernels kernels_amx;
}

namespace {

using pyprune::cpu::Const;
using pyprune::cpu::DType;

const pyprune::cpu::Kernels& table = pyprune::cpu::kernels_amx;
std::mt19937 generator{1};
uint64_t digest = 14695981039346656037u;  // FNV-1a
int64_t cases = 0;
bool watched = true;  // the processor's own loads cannot be

template <class... Values>
void check(bool good, const char* what, Values... values) {
  if (good) return;
  std::printf("FAILED: %s (", what);
  (std::printf("%lld ", static_cast<long long>(values)), ...);
  std::printf(")\n");
  std::exit(1);
}

float random_value() { return float(int32_t(generator())) * 4.6566129e-10f; }  // in [-1, 1)

// Memory that ends where the next byte may not be touched.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page + 1;
    size_ = pages * page;
    start_ = static_cast<char*>(mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    check(start_ != MAP_FAILED && mprotect(start_ + size_ - page, page, PROT_NONE) == 0, "memory", bytes);
    data_ = start_ + size_ - page - bytes;
  }
  ~Memory() { munmap(start_, size_); }
  Memory(const Memory&) = delete;
  template <class T>
  T* as() const { return reinterpret_cast<T*>(data_); }

 private:
  char *start_, *data_;
  int64_t size_;
};

// A weight [rows, k] whose rows lie `stride` apart, with NaN between them; reads are counted where they can be seen.
struct Weight {
  int64_t rows, k, stride;
  Memory memory;
  std::vector<int> reads;

  Weight(int64_t rows, int64_t k, int64_t stride)
      : rows(rows), k(k), stride(stride), memory(size() * 2), reads(size()) {
    for (int64_t i = 0; i < size(); ++i) {
      if (i % stride < k) from_float(random_value(), data()[i]);
      else data()[i].bits = 0x7fc0;
    }
  }
  int64_t size() const { return rows ? (rows - 1) * stride + k : 0; }
  bf16* data() const { return memory.as<bf16>(); }
  Const view() const { return {data(), DType::bf16, stride}; }
  void watch() {
    std::fill(reads.begin(), reads.end(), 0);
    amx_emulator::on_load = [this](const void* row, int bytes) {
      const int64_t first = static_cast<const bf16*>(row) - data();
      if (first < 0 || first >= size()) return;
      check(first % stride + bytes / 2 <= k, "a tile is loaded from beyond its row", first, bytes, k, stride);
      for (int64_t i = 0; i < bytes / 2; ++i) ++reads[first + i];
    };
  }
};

struct Rows {  // activations [count, k], as float32 and as the bfloat16 that they are rounded to
  int64_t count, k;
  std::vector<float> values, rounded;

  Rows(int64_t count, int64_t k) : count(count), k(k), values(count * k), rounded(count * k) {
    for (int64_t i = 0; i < count * k; ++i) {
      values[i] = random_value();
      bf16 narrow;
      from_float(values[i] * 0.5f, narrow);
      rounded[i] = to_float(narrow);
    }
  }
};

// Rows [first, first + count) of x, times 0.5, packed in an order of its own; then multiplied.
std::vector<float> product(Weight& w, const Rows& x, int64_t first, int64_t count) {
  const Memory packed(table.packed_bytes(DType::bf16, w.k, count));
  std::memset(packed.as<char>(), 0xff, table.packed_bytes(DType::bf16, w.k, count));  // NaN where nothing is packed
  for (int64_t i = 0; i < count; ++i) {
    const int64_t m = count - 1 - i;
    table.pack(DType::bf16, x.values.data() + (first + m) * x.k, DType::f32, nullptr, DType::f32, 0.5f, w.k, m, count,
               packed.as<void>());
  }
  const int64_t stride = w.rows + 3;
  const Memory out(((count - 1) * stride + w.rows) * 4);
  std::fill(out.as<float>(), out.as<float>() + (count - 1) * stride + w.rows, 777.0f);
  w.watch();
  table.linear(w.view(), w.rows, w.k, packed.as<void>(), count, out.as<float>(), stride, nullptr);
  amx_emulator::on_load = [](const void*, int) {};

  for (int64_t i = 0; i < int64_t(w.reads.size()) && watched; ++i)
    check(w.reads[i] == (i % w.stride < w.k / 32 * 32 ? (count + 63) / 64 : 0), "a weight is not read once for 64 rows", i);
  check(!amx_emulator::state.configured, "tiles are left in use", count);
  std::vector<float> result(count * w.rows);
  for (int64_t i = 0; i < (count - 1) * stride + w.rows; ++i) {
    if (i % stride < w.rows) result[i / stride * w.rows + i % stride] = out.as<float>()[i];
    else check(out.as<float>()[i] == 777.0f, "something is written beyond the rows", i);
  }
  return result;
}

// The additions of one sum are 16 in a chunk, one of its two halves, and one for each chunk: their error is bounded by
// that many roundings of the sum of magnitudes.
void compare(const Weight& w, const Rows& x, int64_t first, int64_t count, const std::vector<float>& result) {
  const double allowed = (17 + w.k / 32 + 1) * 5.97e-8;  // 2^-24, and a little for the products of roundings
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < w.rows; ++r) {
      double exact = 0.0, magnitude = 0.0;
      for (int64_t i = 0; i < w.k; ++i) {
        const double term = double(to_float(w.data()[r * w.stride + i])) * x.rounded[(first + m) * x.k + i];
        exact += term, magnitude += std::fabs(term);
      }
      const float found = result[m * w.rows + r];
      check(std::fabs(found - exact) <= allowed * magnitude, "a product differs from float64", w.rows, w.k, count, m, r);
    }
}

void test_products(int64_t rows, int64_t k, int64_t stride, const std::vector<int64_t>& counts) {
  Weight w(rows, k, stride);
  const Rows x(130, k);
  const std::vector<float> whole = product(w, x, 0, x.count);
  compare(w, x, 0, x.count, whole);
  for (const float value : whole) digest = (digest ^ as_bits(value)) * 1099511628211u;
  for (const int64_t count : counts) {
    const int64_t first = generator() % (x.count - count + 1);
    const std::vector<float> part = product(w, x, first, count);
    check(!std::memcmp(part.data(), whole.data() + first * rows, part.size() * 4), "a row has other bits in another batch",
          rows, k, count, first);
    ++cases;
  }
}

// Queries over `length` cache rows, of which query m sees [begin, end), against a softmax in float64.
void test_attention(int64_t length, int64_t head_dim, int64_t queries) {
  const Weight keys(length, head_dim, head_dim + 5), values(length, head_dim, head_dim + 1);
  const Rows q(queries, head_dim);
  const Memory packed(table.packed_bytes(DType::bf16, head_dim, queries));
  std::vector<int64_t> begin(queries), end(queries);
  for (int64_t m = 0; m < queries; ++m) {
    table.pack(DType::bf16, q.values.data() + m * head_dim, DType::f32, nullptr, DType::f32, 0.5f, head_dim, m, queries,
               packed.as<void>());
    begin[m] = int64_t(generator() % length);
    end[m] = begin[m] + 1 + int64_t(generator() % length);
  }
  std::vector<float> score(queries * length), maximum(queries), sum(queries), out(queries * head_dim);
  table.attend(keys.view(), values.view(), length, head_dim, packed.as<void>(), queries, begin.data(), end.data(),
               score.data(), maximum.data(), sum.data(), out.data());
  for (int64_t m = 0; m < queries; ++m) {
    std::vector<double> expected(head_dim);
    double total = 0.0;
    for (int64_t l = begin[m]; l < std::min(length, end[m]); ++l) {
      double s = 0.0;
      for (int64_t d = 0; d < head_dim; ++d) s += double(to_float(keys.data()[l * keys.stride + d])) * q.rounded[m * head_dim + d];
      total += std::exp(s);
      for (int64_t d = 0; d < head_dim; ++d) expected[d] += std::exp(s) * to_float(values.data()[l * values.stride + d]);
    }
    for (int64_t d = 0; d < head_dim; ++d)
      check(std::fabs(out[m * head_dim + d] / sum[m] - expected[d] / total) < 2e-5, "attention differs from float64", m, d);
  }
  ++cases;
}

// The two other dtypes take the vectors' way through the same table.
template <class W>
void test_other_dtype(DType type) {
  const int64_t rows = 7, k = 61, count = 5;
  const Rows x(count, k);
  std::vector<W> weight(rows * k);
  for (W& w : weight) from_float(random_value(), w);
  const Memory packed(table.packed_bytes(type, k, count));
  for (int64_t m = 0; m < count; ++m)
    table.pack(type, x.values.data() + m * k, DType::f32, nullptr, DType::f32, 0.5f, k, m, count, packed.as<void>());
  std::vector<float> out(count * rows);
  table.linear({weight.data(), type, k}, rows, k, packed.as<void>(), count, out.data(), rows, nullptr);
  for (int64_t m = 0; m < count; ++m)
    for (int64_t r = 0; r < rows; ++r) {
      double exact = 0.0;
      for (int64_t i = 0; i < k; ++i) exact += double(to_float(weight[r * k + i])) * x.values[m * k + i] * 0.5;
      check(std::fabs(out[m * rows + r] - exact) < 1e-5, "another dtype's product differs from float64", m, r);
    }
  ++cases;
}

// Weights in 12 bits give the bits of those that they stand for; one value of each row is an exception.
void test_twelve_bits(int64_t rows, int64_t k, int64_t count) {
  using namespace pyprune::cpu;
  Weight w(rows, k, k);
  for (int64_t r = 0; r < rows; ++r) from_float(0x1p-90f, w.data()[r * k + generator() % k]);
  const Rows x(count, k);
  const std::vector<float> expected = product(w, x, 0, count);
  const int64_t stride = compressed_row_bytes(k, 40);
  const Memory bytes(rows * stride);
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<uint16_t> values(k), found(k);
    std::memcpy(values.data(), w.data() + r * k, k * 2);
    const Choice choice(values.data(), k);
    check(0 <= choice.exceptions && choice.exceptions <= 40, "exceptions", choice.exceptions);
    compress_row(values.data(), k, choice, bytes.as<uint8_t>() + r * stride, stride);
    table.to_bf16(bytes.as<uint8_t>() + r * stride, k, found.data());
    check(found == values, "a row in 12 bits is another one", r, k);
  }
  const Memory packed(table.packed_bytes(DType::compressed_bf16, k, count));
  for (int64_t m = 0; m < count; ++m)
    table.pack(DType::compressed_bf16, x.values.data() + m * k, DType::f32, nullptr, DType::f32, 0.5f, k, m, count, packed.as<void>());
  std::vector<float> out(count * rows);
  table.linear({bytes.as<void>(), DType::compressed_bf16, stride}, rows, k, packed.as<void>(), count, out.data(), rows, nullptr);
  check(out == expected, "weights in 12 bits give other products", rows, k, count);
  check(table.packed_together(DType::compressed_bf16) == 16, "rows that are packed together");
  ++cases;
}

// A row's norm and a bfloat16 source are packed as they are multiplied: x = 2, norm = 3, scale = 0.5 give 3 for each 1.
void test_packing() {
  std::vector<bf16> x(40), norm(40);
  for (int64_t i = 0; i < 40; ++i) from_float(2.0f, x[i]), from_float(3.0f, norm[i]);
  Weight w(1, 40, 40);
  for (int64_t i = 0; i < 40; ++i) from_float(1.0f, w.data()[i]);
  const Memory packed(table.packed_bytes(DType::bf16, 40, 1));
  table.pack(DType::bf16, x.data(), DType::bf16, norm.data(), DType::bf16, 0.5f, 40, 0, 1, packed.as<void>());
  float out = 0.0f;
  table.linear(w.view(), 1, 40, packed.as<void>(), 1, &out, 1, nullptr);
  check(out == 120.0f, "a packed row lacks its norm or its scale");
  check(table.packed_together(DType::bf16) == 16 && table.packed_together(DType::f32) == 1, "rows that are packed together");
  ++cases;
}

void test_nothing() {
  Weight w(5, 0, 4);
  float out[5] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  table.linear(w.view(), 5, 0, nullptr, 1, out, 5, nullptr);
  check(std::all_of(out, out + 5, [](float v) { return v == 0.0f; }), "no values of k do not give zero");
  table.linear(w.view(), 5, 0, nullptr, 0, nullptr, 5, nullptr);  // no activations: nothing is written
  ++cases;
}

// ---- the emulator itself --------------------------------------------------------------------------------------------

struct Shapes {
  uint8_t palette = 1, zeros[15] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

Shapes shapes(std::initializer_list<std::pair<int, int>> given) {  // rows and bytes of tiles 0, 1, ...
  Shapes s;
  int t = 0;
  for (const auto& [rows, bytes] : given) s.rows[t] = uint8_t(rows), s.bytes[t++] = uint16_t(bytes);
  return s;
}

template <class F>
void refused(const char* what, const F& act) {
  try {
    act();
  } catch (const amx_emulator::Fault& fault) {
    check(std::strstr(fault.what(), what), what);
    return;
  }
  check(false, what);
}

void test_faults() {
  namespace amx = amx_emulator;
  const auto with = [](Shapes s) { amx::load_config(&s); };
  amx::release();
  refused("not configured", [] { amx::zero(0); });
  refused("larger", [&] { with(shapes({{17, 64}})); });
  refused("larger", [&] { with(shapes({{16, 68}})); });
  refused("alone", [&] { with(shapes({{16, 0}})); });
  refused("does not exist", [&] { auto s = shapes({}); s.rows[8] = 1, s.bytes[8] = 4; with(s); });
  refused("reserved", [&] { auto s = shapes({}); s.zeros[3] = 1; with(s); });
  refused("palette", [&] { auto s = shapes({}); s.palette = 2; with(s); });
  with(shapes({{16, 64}, {16, 64}, {15, 64}, {16, 62}, {16, 8}}));
  refused("no shape", [] { amx::zero(5); });
  refused("different", [] { amx::dpbf16ps(0, 0, 1); });
  refused("do not multiply", [] { amx::dpbf16ps(0, 1, 2); });
  refused("do not multiply", [] { amx::dpbf16ps(0, 1, 4); });
  refused("whole pairs", [] { amx::dpbf16ps(0, 1, 3); });
  amx::release();
  refused("not configured", [] { amx::dpbf16ps(0, 1, 2); });
}

// One sum of two pairs: c + (a0 b0 + a2 b2) + (a1 b1 + a3 b3), from bfloat16 powers of two.
float one_sum(float c, const float (&a)[4], const float (&b)[4]) {
  namespace amx = amx_emulator;
  const Shapes s = shapes({{1, 4}, {1, 8}, {2, 4}});
  bf16 left[4], right[4];
  for (int i = 0; i < 4; ++i) from_float(a[i], left[i]), from_float(b[i], right[i]);
  amx::load_config(&s);
  amx::load(0, &c, 4);
  amx::load(1, left, 8);
  amx::load(2, right, 4);
  amx::dpbf16ps(0, 1, 2);
  amx::store(0, &c, 4);
  amx::release();
  return c;
}

void test_arithmetic() {
  const float tiny = 0x1p-24f, denormal = 0x1p-130f;
  check(one_sum(5.0f, {1, 2, 3, 4}, {1, 10, 100, 1000}) == 4326.0f, "a sum of pairs");
  // 2^-24 is lost beside 1, and not where it is added to another one first.
  check(one_sum(0.0f, {1, tiny, 0, tiny}, {1, 1, 1, 1}) == 1.0f + 0x1p-23f, "odd values are summed apart");
  check(one_sum(0.0f, {1, 0, tiny, tiny}, {1, 1, 1, 1}) == 1.0f, "even values are summed one after the other");
  check(one_sum(1.0f, {tiny, tiny, 0, 0}, {1, 1, 1, 1}) == 1.0f + 0x1p-23f, "c comes last");
  check(one_sum(0.0f, {denormal, 0, 0, 0}, {0x1p100f, 0, 0, 0}) == 0.0f, "a denormal operand is zero");
  check(one_sum(0.0f, {0x1p-70f, 0, 0, 0}, {0x1p-70f, 0, 0, 0}) == 0.0f, "a denormal result is zero");
  check(one_sum(denormal, {0, 0, 0, 0}, {0, 0, 0, 0}) == 0.0f, "a denormal sum is zero");
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && !std::strcmp(arguments[1], "hardware")) {
    watched = false;
#if defined(__linux__) && defined(__x86_64__)
    check(syscall(SYS_arch_prctl, 0x1023, 18) == 0, "the system does not give tile registers");
#endif
  }
  test_faults();
  test_arithmetic();
  std::vector<int64_t> every(64);
  for (int64_t m = 0; m < 64; ++m) every[m] = m + 1;
  test_products(17, 33, 33, every);
  test_products(5, 95, 101, every);
  for (const int64_t k : {1, 2, 31, 32, 63, 64, 577})
    for (const int64_t rows : {1, 15, 16, 35}) test_products(rows, k, k + (rows == 1 ? 0 : 7), {1, 2, 16, 31, 64, 65});
  test_attention(1, 8, 1);
  test_attention(50, 64, 3);
  test_attention(33, 72, 20);
  test_attention(256, 20, 70);
  test_other_dtype<float>(DType::f32);
  test_other_dtype<f16>(DType::f16);
  for (const int64_t k : {1, 63, 64, 577})
    for (const int64_t m : {1, 4, 17, 64}) test_twelve_bits(m == 4 ? 35 : 16, k, m);
  test_packing();
  test_nothing();
  std::printf("passed %lld cases, bits %016llx\n", static_cast<long long>(cases), static_cast<unsigned long long>(digest));
}

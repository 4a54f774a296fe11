// Times every layout of the skinny linear (csrc/cuda/) on the GPU at hand, at the shapes of LLaMA 7B and 1B in bfloat16.
//   layouts NAME      NAME: what is printed as the variant's
// One line a shape: the layout that plan_of chooses and the three quickest of all. Then whole layers, one after the other
// with their own weights. Each figure is the median of five runs of one CUDA graph, in which the kernel is started 32
// times over different weights, with programmatic dependent launch ("pdl") and without.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#include "instructions.cuh"
#include "skinny_linear.cuh"

using namespace pyprune::cuda;

#define CHECK(call)                                                                                \
  do {                                                                                             \
    if (const cudaError_t error = (call)) {                                                        \
      std::printf("%s, line %d: %s\n", #call, __LINE__, cudaGetErrorString(error));                \
      std::exit(1);                                                                                \
    }                                                                                              \
  } while (0)

namespace {

constexpr size_t kPool = size_t(3) << 30;  // bytes of weights: several times any L2 cache
constexpr int kLaunches = 32, kRuns = 7, kWarmUps = 2, kLayers = 7, kLength = 64;

struct Shape {
  const char* name;
  int n, k;
  Form form;
  bool norm, residual;
  int half, heads, kv_heads;  // of qkv_rope
};
constexpr Shape kShapes[] = {
    {"o", 4096, 4096, Form::linear, false, true, 0, 0, 0},
    {"down", 4096, 11008, Form::linear, false, true, 0, 0, 0},
    {"gate_up", 11008, 4096, Form::gate_up, true, false, 0, 0, 0},
    {"qkv", 96 * 64, 4096, Form::qkv_rope, true, false, 64, 32, 32},
    {"head", 32000, 4096, Form::linear, true, false, 0, 0, 0},
    {"down7155", 4096, 7155, Form::linear, false, true, 0, 0, 0},
    {"o1b", 2048, 2048, Form::linear, false, true, 0, 0, 0},
    {"gate_up1b", 5632, 2048, Form::gate_up, true, false, 0, 0, 0},
    {"qkv1b", 48 * 32, 2048, Form::qkv_rope, true, false, 32, 32, 8},
};
constexpr int kLayer[] = {3, 0, 2, 1};  // qkv, o, gate_up, down

struct Layout {
  int split, rows_per_warp;
};
struct Timed {
  double us;
  Layout layout;
  int blocks;
  bool dependent;
};

Device device;
cudaStream_t stream;
cudaEvent_t start, stop;
uint16_t *weights, *x, *out, *residual, *norms, *cache;
float* table;
int64_t* positions;

__global__ void fill(uint16_t* values, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    uint32_t hash = uint32_t(i) * 2654435761u ^ seed;
    hash = (hash ^ hash >> 13) * 0x5bd1e995u;
    values[i] = __bfloat16_as_ushort(__float2bfloat16_rn((float(hash >> 16) / 65536.0f - 0.5f) * 0.06f));
  }
}

template <class T>
T* allocated(size_t bytes, uint32_t seed) {
  void* memory;
  CHECK(cudaMalloc(&memory, bytes));
  CHECK(cudaMemset(memory, 0, bytes));
  if (seed) fill<<<1024, 256>>>(static_cast<uint16_t*>(memory), bytes / 2, seed);
  return static_cast<T*>(memory);
}

// The arguments for the shape with weights from element `first` on; how many elements they take comes second.
Arguments arguments_of(const Shape& shape, size_t first, size_t& used) {
  Arguments a;
  a.weight_type = DType::bf16;
  a.n = shape.n, a.k = shape.k, a.eps = 1e-5f;
  a.x = x, a.out = out;
  if (shape.norm) a.norm = norms;
  if (shape.residual) a.residual = residual;
  const size_t each = size_t(shape.n) * shape.k;
  for (int w = 0; w < 2; ++w) {
    a.weight[w] = weights + first + (w < matrices_of(shape.form) && shape.form != Form::qkv_rope ? w * each : 0);
    a.stride[w] = shape.k;
  }
  used = each * matrices_of(shape.form);
  if (shape.form == Form::qkv_rope) {
    Heads& h = a.heads;
    h.half = shape.half, h.heads = shape.heads, h.kv_heads = shape.kv_heads;
    const int heads[] = {shape.heads, shape.kv_heads, shape.kv_heads};
    for (int s = 0; s < 3; ++s) {
      h.weight[s] = weights + first;
      h.stride[s] = shape.k;
      first += size_t(heads[s]) * 2 * shape.half * shape.k;
    }
    h.cos = h.sin = table;
    h.cos_stride = h.sin_stride = shape.half;
    h.positions = positions;
    h.limit = h.slot_limit = kLength;
    for (int i = 0; i < 2; ++i) {
      h.cache[i] = cache + i * (1 << 22);
      h.row_stride[i] = 2 * shape.half;
      h.head_stride[i] = h.row_stride[i] * kLength;
      h.batch_stride[i] = h.head_stride[i] * shape.kv_heads;
    }
  }
  return a;
}

// As plan_of, with these choices.
Plan plan_with(const Arguments& a, int matrices, Layout layout) {
  Plan p = plan_of(a, 1, matrices, device);
  const int v = kWideBytes / size_of(a.weight_type), width = loads_in_flight(matrices) / matrices * 32 * layout.split;
  if (p.panel_slots >= ceil_div(a.k + v - 1, v)) p.steps_per_panel = larger(1, ceil_div(p.panel_slots, width));
  p.split = layout.split;
  p.rows_per_warp = layout.rows_per_warp;
  p.blocks = block_count(a.n, kWarps / layout.split * layout.rows_per_warp, p.period);
  return p;
}

template <Form kForm>
void launch(const Arguments& a, bool dependent) {
  CHECK(cudaFuncSetAttribute(skinny_linear<Bf16, 1, kForm>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             device.shared_per_block - 1024));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(a.plan.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = size_t(a.plan.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = dependent ? 1 : 0;
  CHECK(cudaLaunchKernelEx(&config, skinny_linear<Bf16, 1, kForm>, a));
}

void launch(Form form, const Arguments& a, bool dependent) {
  if (form == Form::linear) return launch<Form::linear>(a, dependent);
  if (form == Form::gate_up) return launch<Form::gate_up>(a, dependent);
  launch<Form::qkv_rope>(a, dependent);
}

// Microseconds of what `record` starts.
double seconds_of(const std::function<void()>& record) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  record();
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&ready, graph, 0));
  std::vector<float> taken;
  for (int run = 0; run < kRuns; ++run) {
    float ms;
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(ready, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaEventSynchronize(stop));
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (run >= kWarmUps) taken.push_back(ms);
  }
  CHECK(cudaGraphExecDestroy(ready));
  CHECK(cudaGraphDestroy(graph));
  std::sort(taken.begin(), taken.end());
  return taken[taken.size() / 2] * 1e3;
}

// Every layout of one shape; the quickest with dependent launch is what it gives.
Layout time_shape(const Shape& shape) {
  const int matrices = matrices_of(shape.form);
  size_t used;
  const Arguments any = arguments_of(shape, 0, used);
  const int copies = int(std::min<size_t>(16, kPool / 2 / used));
  const double bytes = double(used) * 2;
  std::vector<Timed> found;
  const auto time = [&](const Plan& plan, bool dependent) {
    const double us = seconds_of([&] {
      for (int i = 0; i < kLaunches; ++i) {
        Arguments a = arguments_of(shape, used * size_t(i % copies), used);
        a.plan = plan;
        launch(shape.form, a, dependent);
      }
    });
    return Timed{us / kLaunches, {plan.split, plan.rows_per_warp}, plan.blocks, dependent};
  };
  const Plan chosen = plan_of(any, 1, matrices, device);
  const Timed plain = time(chosen, false), early = time(chosen, true);
  for (int split = 1; split <= kWarps; split *= 2)
    for (const int rows : {1, 2, 4, 8, 16})
      if (shape.n / (kWarps / split * rows) >= device.processors)
        for (const bool dependent : {false, true}) found.push_back(time(plan_with(any, matrices, {split, rows}), dependent));
  found.push_back(plain);
  found.push_back(early);
  std::sort(found.begin(), found.end(), [](const Timed& a, const Timed& b) { return a.us < b.us; });
  std::printf("%-10s M=1 plan s%d r%d b%d: %.1f us %.0f GB/s | pdl %.1f us %.0f GB/s |", shape.name, plain.layout.split,
              plain.layout.rows_per_warp, plain.blocks, plain.us, bytes / plain.us / 1e3, early.us, bytes / early.us / 1e3);
  for (size_t i = 0; i < 3 && i < found.size(); ++i)
    std::printf(" s%d r%d%s %.1f us %.0f GB/s;", found[i].layout.split, found[i].layout.rows_per_warp,
                found[i].dependent ? " pdl" : "", found[i].us, bytes / found[i].us / 1e3);
  std::printf("\n");
  return std::find_if(found.begin(), found.end(), [](const Timed& one) { return one.dependent; })->layout;
}

void time_layers(const std::vector<Layout>& best) {
  for (const bool tuned : {false, true})
    for (const bool dependent : {false, true}) {
      size_t first = 0;
      const double us = seconds_of([&] {
        first = 0;
        for (int layer = 0; layer < kLayers; ++layer)
          for (const int index : kLayer) {
            const Shape& shape = kShapes[index];
            size_t used;
            Arguments a = arguments_of(shape, first, used);
            first += used;
            const int matrices = matrices_of(shape.form);
            a.plan = tuned ? plan_with(a, matrices, best[size_t(index)]) : plan_of(a, 1, matrices, device);
            launch(shape.form, a, dependent);
          }
      });
      std::printf("chain pdl %d tuned %d: %.1f us a layer, %.0f GB/s\n", int(dependent), int(tuned), us / kLayers,
                  double(first) * 2 / us / 1e3);
    }
}

}  // namespace

int main(int argc, char** argv) {
  CHECK(cudaDeviceGetAttribute(&device.shared_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
  CHECK(cudaDeviceGetAttribute(&device.shared_per_processor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, 0));
  CHECK(cudaDeviceGetAttribute(&device.processors, cudaDevAttrMultiProcessorCount, 0));
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  weights = allocated<uint16_t>(kPool, 1);
  x = allocated<uint16_t>(1 << 20, 2);
  residual = allocated<uint16_t>(1 << 20, 3);
  norms = allocated<uint16_t>(1 << 20, 4);
  out = allocated<uint16_t>(1 << 20, 0);
  table = allocated<float>(1 << 20, 0);
  positions = allocated<int64_t>(64, 0);
  cache = allocated<uint16_t>(1 << 24, 0);
  CHECK(cudaDeviceSynchronize());
  std::printf("variant %s: threads %d loads %d/%d blocks %d/%d\n", argc > 1 ? argv[1] : "as it is", kThreads, loads_in_flight(1),
              loads_in_flight(2), blocks_per_processor(1, 1, 2), blocks_per_processor(2, 1, 2));
  std::vector<Layout> best;
  for (const Shape& shape : kShapes) best.push_back(time_shape(shape));
  time_layers(best);
}

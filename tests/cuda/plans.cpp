// The layouts that csrc/cuda/skinny_linear.h chooses for the devices it is compiled for, one line each.
#include "../../csrc/cuda/skinny_linear.h"

#include <cstdio>
#include <initializer_list>

using namespace pyprune::cuda;

int main() {
  const Device devices[] = {{132, 227 * 1024, 228 * 1024}, {108, 163 * 1024, 164 * 1024}, {82, 99 * 1024, 100 * 1024}};
  const int shapes[][2] = {{4096, 4096},  {11008, 4096}, {4096, 11008}, {32000, 4096}, {4096, 7155},  {7155, 4096},
                           {8192, 28672}, {576, 1536},   {5120, 8807},  {128256, 4096}, {1, 1},       {3, 200001}};
  for (const Device& device : devices)
    for (const auto& shape : shapes)
      for (const DType type : {DType::f32, DType::bf16})
        for (int rows = 1; rows <= 2; ++rows)
          for (int matrices = 1; matrices <= 2; ++matrices) {
            Arguments a;
            a.weight_type = type;
            a.n = shape[0];
            a.k = shape[1];
            a.stride[0] = a.stride[1] = shape[1];
            a.weight[0] = reinterpret_cast<const void*>(uint64_t(4096));
            a.weight[1] = reinterpret_cast<const void*>(uint64_t(8192));
            const Plan p = plan_of(a, rows, matrices, device);
            const int v = kWideBytes / size_of(type);
            std::printf("%d %d %d %d %d %d %d %d %d %d %d %d\n", device.processors, device.shared_per_block, a.n, a.k, v, rows,
                        matrices, p.split, p.rows_per_warp, p.period, p.blocks, p.shared_bytes);
          }
}

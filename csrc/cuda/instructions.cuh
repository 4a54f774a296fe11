// The instructions that CUDA C++ has no name for, one tiny function each, and the conversions between number formats.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace pyprune::cuda {

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// An L2 policy: a weight is read once a token, so its lines leave the L2 first and activations and caches stay. (The
// L2::evict_first qualifier itself exists on loads of sm_100 and later only; a policy serves sm_80 and up.)
__device__ __forceinline__ uint64_t streaming_policy() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// 16 bytes of weights, or zeros where `wanted` is false: predicated, so that the loads of a batch are issued back to
// back with no branch between them. nc and no_allocate: constant data that must not wash x out of the L1. volatile:
// the compiler may not move it below the wait for the previous kernel.
__device__ __forceinline__ uint4 load_weights(const void* address, uint64_t policy, bool wanted) {
  uint4 value;
  asm volatile(
      "{\n"
      "  .reg .pred p;\n"
      "  setp.ne.b32 p, %6, 0;\n"
      "  mov.b32 %0, 0;\n"
      "  mov.b32 %1, 0;\n"
      "  mov.b32 %2, 0;\n"
      "  mov.b32 %3, 0;\n"
      "  @p ld.global.nc.L1::no_allocate.L2::cache_hint.v4.b32 {%0, %1, %2, %3}, [%4], %5;\n"
      "}\n"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(address), "l"(policy), "r"(int(wanted)));
  return value;
}

// 16 bytes of activations.
__device__ __forceinline__ uint4 load_wide(const void* address) { return *static_cast<const uint4*>(address); }

// One weight at a row's edge. Its sector belongs to the neighbouring row too, so it keeps the ordinary cache policy.
__device__ __forceinline__ float load_weight(const float* address) { return __ldg(address); }
__device__ __forceinline__ Bf16 load_weight(const Bf16* address) {
  return {__ldg(reinterpret_cast<const unsigned short*>(address))};
}
__device__ __forceinline__ Half load_weight(const Half* address) {
  return {__ldg(reinterpret_cast<const unsigned short*>(address))};
}

// Programmatic dependent launch exists from sm_90 on. Code for older targets must never be launched with the attribute
// that lets it start early: see launch_skinny_linear.
// Waits until the previous kernel has ended and what it wrote can be seen.
__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel take the places that this one leaves free; its own wait keeps its reads behind our writes.
__device__ __forceinline__ void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ __forceinline__ uint4* dynamic_shared() {
  extern __shared__ uint4 pyprune_dynamic_shared[];
  return pyprune_dynamic_shared;
}

// The same value, though the compiler cannot know: what follows from it is computed again where it is needed, instead of
// staying in registers that the ring of loads wants.
__device__ __forceinline__ int recomputed(int value) {
  asm volatile("" : "+r"(value));
  return value;
}

__device__ __forceinline__ void block_barrier() { __syncthreads(); }

__device__ __forceinline__ float from_neighbour(float value, int distance) {
  return __shfl_xor_sync(0xffffffffu, value, distance);
}

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ float widen(Bf16 value) { return __uint_as_float(uint32_t(value.bits) << 16); }
__device__ __forceinline__ float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }

// The two numbers of a 32-bit word. bf16 is the upper half of a float32, so a shift and a mask do.
__device__ __forceinline__ float2 widen_pair(Bf16, uint32_t word) {
  return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
}
__device__ __forceinline__ float2 widen_pair(Half, uint32_t word) {
  return {__half2float(__ushort_as_half(uint16_t(word))), __half2float(__ushort_as_half(uint16_t(word >> 16)))};
}
__device__ __forceinline__ float word_as_float(uint32_t word) { return __uint_as_float(word); }
__device__ __forceinline__ uint32_t float_as_word(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float2 words_as_floats(uint32_t a, uint32_t b) {
  return {__uint_as_float(a), __uint_as_float(b)};
}

// Rounded to nearest even.
__device__ __forceinline__ void narrow(float value, float& result) { result = value; }
__device__ __forceinline__ void narrow(float value, Bf16& result) {
  result.bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}
__device__ __forceinline__ void narrow(float value, Half& result) {
  result.bits = __half_as_ushort(__float2half_rn(value));
}

}  // namespace pyprune::cuda

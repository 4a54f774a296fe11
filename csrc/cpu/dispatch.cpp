// Which instruction sets were compiled, which this processor has, and which one is in use.
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace pyprune::cpu {

extern const Kernels kernels_portable;
#if defined(PYPRUNE_HAVE_avx2)
extern const Kernels kernels_avx2;
#endif
#if defined(PYPRUNE_HAVE_avx512)
extern const Kernels kernels_avx512;
#endif
#if defined(PYPRUNE_HAVE_avx512_bf16)
extern const Kernels kernels_avx512_bf16;
#endif
#if defined(PYPRUNE_HAVE_amx)
extern const Kernels kernels_amx;
#endif

namespace {

const Kernels* const kCompiled[] = {
#if defined(PYPRUNE_HAVE_amx)
    &kernels_amx,
#endif
#if defined(PYPRUNE_HAVE_avx512_bf16)
    &kernels_avx512_bf16,
#endif
#if defined(PYPRUNE_HAVE_avx512)
    &kernels_avx512,
#endif
#if defined(PYPRUNE_HAVE_avx2)
    &kernels_avx2,
#endif
    &kernels_portable,
    nullptr,
};

#if defined(__x86_64__) || defined(__i386__)
bool has_f16c() {  // clang before 18 does not know the name in __builtin_cpu_supports
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

#if defined(PYPRUNE_HAVE_amx)
bool has_tiles() {  // AMX-TILE and AMX-BF16; compilers came to know their names late
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 24 & 1) && (d >> 22 & 1);
}

// Linux (5.16 on) gives a process the 8 KB of tile registers on request only, and then to all of its threads; without
// it the first tile instruction ends the process. Asked for once, where somebody wants to know.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool given = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  return given;
#else
  return false;
#endif
}
#endif

bool runs_here(const Kernels& k) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!std::strcmp(k.name, "avx2")) return avx2;
  if (!std::strcmp(k.name, "avx512")) return avx512;
#if defined(PYPRUNE_HAVE_avx512_bf16)
  const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (!std::strcmp(k.name, "avx512_bf16")) return avx512_bf16;
#if defined(PYPRUNE_HAVE_amx)
  if (!std::strcmp(k.name, "amx")) return avx512_bf16 && has_tiles() && may_use_tiles();
#endif
#endif
#endif
  return !std::strcmp(k.name, "portable");
}

// Each has passed the operators' tests on hardware (pyprune/ops/native.py names it).
const Kernels* best() {
  for (const Kernels* const* k = kCompiled; *k; ++k)
    if (runs_here(**k)) return *k;
  return &kernels_portable;
}

const Kernels*& current() {
  static const Kernels* chosen = best();
  return chosen;
}

}  // namespace

const Kernels* const* compiled_kernels() { return kCompiled; }
const Kernels& kernels() { return *current(); }

}  // namespace pyprune::cpu

// For Python, through ctypes. The names are stable; strings belong to the library.
extern "C" {

__attribute__((visibility("default"))) const char* pyprune_isa_compiled(int index) {
  for (int i = 0; pyprune::cpu::kCompiled[i]; ++i)
    if (i == index) return pyprune::cpu::kCompiled[i]->name;
  return nullptr;
}

__attribute__((visibility("default"))) int pyprune_isa_runs_here(const char* name) {
  for (const auto* const* k = pyprune::cpu::kCompiled; *k; ++k)
    if (!std::strcmp((*k)->name, name)) return pyprune::cpu::runs_here(**k);
  return 0;
}

__attribute__((visibility("default"))) const char* pyprune_isa_selected() { return pyprune::cpu::kernels().name; }

// 1 when `name` is compiled in and runs here and is now in use; 0 otherwise, and nothing has changed.
__attribute__((visibility("default"))) int pyprune_isa_select(const char* name) {
  for (const auto* const* k = pyprune::cpu::kCompiled; *k; ++k)
    if (!std::strcmp((*k)->name, name) && pyprune::cpu::runs_here(**k)) {
      pyprune::cpu::current() = *k;
      return 1;
    }
  return 0;
}

}  // extern "C"

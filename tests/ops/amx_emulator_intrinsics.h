// The compiler's names for tile instructions, given to the emulator: included before a kernel's source, it makes a
// program of it that runs on any machine.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "amx_emulator.h"

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig amx_emulator::load_config
#define _tile_release amx_emulator::release
#define _tile_zero amx_emulator::zero
#define _tile_loadd amx_emulator::load
#define _tile_stored amx_emulator::store
#define _tile_dpbf16ps amx_emulator::dpbf16ps
#define __AMX_BF16__ 1

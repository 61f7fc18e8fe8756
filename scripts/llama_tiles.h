// Makes GCC's tile intrinsics sound; llama_build.cmake puts this in front of ggml's AMX kernels (amx/mmq.cpp).
//
// GCC writes them as assembly of which it is told too little: that _tile_loadconfig reads 8 bytes (it reads 64), and
// that _tile_loadd reads none. So the compiler may drop what is stored there, or store it later. GCC 12.2 drops most of
// ggml's configuration, and the first instruction on a tile faults. A fence says that any memory may be read and
// written here. It is no instruction; that of the loads stands behind them as well, as what they read is soon
// overwritten. Clang knows these instructions and needs none of this.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)

#include <immintrin.h>

#define BATCHER_FENCE() __asm__ volatile("" : : : "memory")

// Inside of a macro its own name means what it meant before.
#define _tile_loadconfig(config)                                    \
    do {                                                            \
        __asm__ volatile("" : : "r"(config) : "memory");            \
        _tile_loadconfig(config);                                   \
    } while (0)

#ifdef _tile_loadd_internal
#undef _tile_loadd
#define _tile_loadd(tile, base, stride)          \
    do {                                         \
        BATCHER_FENCE();                         \
        _tile_loadd_internal(tile, base, stride); \
        BATCHER_FENCE();                         \
    } while (0)
#endif

#endif

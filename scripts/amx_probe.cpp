// Exits 0 where this compiler's AMX code works on this processor: some virtual machines announce AMX and have none, and
// a compiler may be too old to know it. Takes a second, so it goes before a build of minutes; whether the kernels of
// that build compute what they should is then for workers/engines/llama/kernels.py.
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "llama_tiles.h"

#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA 18

struct Config {
    uint8_t palette = 0, start_row = 0, reserved[14] = {0};
    uint16_t column_bytes[16] = {0};
    uint8_t rows[16] = {0};
};

// A function of its own, as in llama.cpp: once it returns, nothing else reads the configuration.
inline void load_config() {
    alignas(64) Config config = {};
    config.palette = 1;
    for (int tile = 0; tile < 3; ++tile) {
        config.rows[tile] = 16;
        config.column_bytes[tile] = 64;
    }
    _tile_loadconfig(&config);
}

int main() {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return 1;
    load_config();
    alignas(64) int8_t ones[16 * 64], twos[16 * 64];
    alignas(64) int32_t product[16 * 16];
    for (int i = 0; i < 16 * 64; ++i) {
        ones[i] = 1;
        twos[i] = 2;
    }
    _tile_zero(0);
    _tile_loadd(1, ones, 64);
    _tile_loadd(2, twos, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, product, 64);
    _tile_release();
    for (int value : product) {
        if (value != 64 * 2) return 2;
    }
    return 0;
}

// Exits 0 where this compiler's AMX code works on this processor. GCC of before 2024 names 8 of the 64 bytes that
// _tile_loadconfig reads and drops the stores to the others, so that the instruction faults (seen with 12.2; llama.cpp
// fills the configuration in the same way). Some virtual machines announce AMX and have none.
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

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
    config.rows[0] = 8;
    config.column_bytes[0] = 64;
    config.rows[7] = 16;
    config.column_bytes[7] = 64;
    _tile_loadconfig(&config);
}

int main() {
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) != 0) return 1;
    load_config();
    alignas(64) Config loaded = {};
    _tile_storeconfig(&loaded);
    __asm__ volatile("" : : "r"(&loaded) : "memory");  // for the same flaw: only 8 bytes count as written
    _tile_release();
    return loaded.rows[7] == 16 && loaded.column_bytes[7] == 64 ? 0 : 2;
}

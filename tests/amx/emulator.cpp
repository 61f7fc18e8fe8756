// AMX for a process on a processor without it: preloaded (LD_PRELOAD), it carries out each instruction on tiles that the
// processor refuses, by Intel's Software Developer's Manual, volume 2. All others run natively, so what is tried is the
// very code that the compiler made. What AMX would refuse, such as a wrong configuration, ends the process as there.
// Some microseconds for each instruction. Where the processor has tiles itself, the process ends with 77 before it begins.
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

namespace {

constexpr int kHasTiles = 77;
constexpr int kNumTiles = 8, kNumRows = 16, kRowBytes = 64;

struct Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(Config) == 64, "as the instructions read and write it");

struct Tiles {
    Config config;
    uint8_t data[kNumTiles][kNumRows][kRowBytes];
};
// Nothing is allocated when a signal handler first asks for it.
__attribute__((tls_model("initial-exec"))) thread_local Tiles tiles;

// The C library's own sigaction.
int set_action(int signal, const struct sigaction * action, struct sigaction * old) {
    static const auto next = reinterpret_cast<decltype(&sigaction)>(dlsym(RTLD_NEXT, "sigaction"));
    return next(signal, action, old);
}

// Ends the process by `signal`, as the exception would.
[[noreturn]] void refuse(int signal, const char * reason) {
    const char name[] = "amx emulator: ";
    (void)!write(STDERR_FILENO, name, sizeof(name) - 1);
    (void)!write(STDERR_FILENO, reason, strlen(reason));
    (void)!write(STDERR_FILENO, "\n", 1);
    struct sigaction standard = {};
    standard.sa_handler = SIG_DFL;
    set_action(signal, &standard, nullptr);
    raise(signal);
    _exit(128 + signal);
}

// An instruction of the VEX encoding with three bytes of prefix, as all of these are.
struct Instruction {
    int opcode, prefix;  // prefix: 0 for none, 1 for 66, 2 for F3, 3 for F2
    int reg, rm, vvvv;   // tiles
    bool has_memory;
    uint8_t * address;
    int64_t stride;
    int length;
};

Instruction decode(const mcontext_t & machine) {
    constexpr int kRegisters[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    const uint8_t * code = reinterpret_cast<const uint8_t *>(machine.gregs[REG_RIP]);
    const bool is_vex = code[0] == 0xC4 && (code[1] & 0x1F) == 2;
    if (!is_vex || (code[2] & 0x84)) refuse(SIGILL, "not an instruction on tiles");
    // These bits are inverted.
    const int reg_high = code[1] & 0x80 ? 0 : 8, index_high = code[1] & 0x40 ? 0 : 8, base_high = code[1] & 0x20 ? 0 : 8;

    Instruction found = {};
    found.prefix = code[2] & 3;
    found.vvvv = (~code[2] >> 3) & 15;
    found.opcode = code[3];
    const int mode = code[4] >> 6, low = code[4] & 7;
    found.reg = ((code[4] >> 3) & 7) + reg_high;
    found.rm = low + base_high;
    found.length = 5;
    found.has_memory = mode != 3;
    if (!found.has_memory) return found;

    int64_t address = 0;
    int displacement_bytes = mode == 1 ? 1 : mode == 2 ? 4 : 0;
    bool is_relative = false;
    if (low == 4) {
        const int scale = code[5] >> 6, index = ((code[5] >> 3) & 7) + index_high, base = code[5] & 7;
        found.length += 1;
        if (index != 4) found.stride = machine.gregs[kRegisters[index]] << scale;
        if (base == 5 && mode == 0) {
            displacement_bytes = 4;
        } else {
            address = machine.gregs[kRegisters[base + base_high]];
        }
    } else if (low == 5 && mode == 0) {
        displacement_bytes = 4;
        is_relative = true;
    } else {
        address = machine.gregs[kRegisters[found.rm]];
    }
    if (displacement_bytes == 1) {
        address += static_cast<int8_t>(code[found.length]);
    } else if (displacement_bytes == 4) {
        int32_t displacement;
        memcpy(&displacement, code + found.length, sizeof(displacement));
        address += displacement;
    }
    found.length += displacement_bytes;
    if (is_relative) address += machine.gregs[REG_RIP] + found.length;
    found.address = reinterpret_cast<uint8_t *>(address);
    return found;
}

void load_config(const uint8_t * address) {
    Config config;
    memcpy(&config, address, sizeof(config));
    if (config.palette > 1) refuse(SIGSEGV, "a configuration of an unknown palette");
    memset(&tiles, 0, sizeof(tiles));
    if (config.palette == 0) return;
    for (uint8_t byte : config.reserved) {
        if (byte != 0) refuse(SIGSEGV, "a configuration with reserved bytes that are not 0");
    }
    for (int tile = 0; tile < 16; ++tile) {
        const int rows = config.rows[tile], column_bytes = config.column_bytes[tile];
        if (rows > kNumRows || column_bytes > kRowBytes || !rows != !column_bytes || (rows && tile >= kNumTiles)) {
            refuse(SIGSEGV, "a configuration of impossible tiles");
        }
    }
    tiles.config = config;
}

void check_tile(int tile) {
    if (tiles.config.palette != 1 || tile >= kNumTiles || tiles.config.rows[tile] == 0) {
        refuse(SIGILL, "a tile that is not configured");
    }
}

template <typename Left, typename Right>
void multiply(int target, int left, int right) {
    const Config & config = tiles.config;
    for (int row = 0; row < config.rows[target]; ++row) {
        for (int group = 0; group < config.column_bytes[left] / 4; ++group) {
            for (int column = 0; column < config.column_bytes[target] / 4; ++column) {
                uint8_t * product = tiles.data[target][row] + 4 * column;
                int32_t sum;
                memcpy(&sum, product, sizeof(sum));
                for (int byte = 0; byte < 4; ++byte) {
                    const Left a = static_cast<Left>(tiles.data[left][row][4 * group + byte]);
                    const Right b = static_cast<Right>(tiles.data[right][group][4 * column + byte]);
                    sum = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(a * b));
                }
                memcpy(product, &sum, sizeof(sum));
            }
        }
    }
}

void multiply(const Instruction & it) {
    const int target = it.reg, left = it.rm, right = it.vvvv;
    check_tile(target);
    check_tile(left);
    check_tile(right);
    const Config & config = tiles.config;
    if (config.rows[target] != config.rows[left] || config.column_bytes[target] != config.column_bytes[right] ||
        config.column_bytes[left] != 4 * config.rows[right]) {
        refuse(SIGILL, "a product of tiles that do not fit");
    }
    switch (it.prefix) {
        case 0: return multiply<uint8_t, uint8_t>(target, left, right);
        case 1: return multiply<uint8_t, int8_t>(target, left, right);
        case 2: return multiply<int8_t, uint8_t>(target, left, right);
        default: return multiply<int8_t, int8_t>(target, left, right);
    }
}

void move(const Instruction & it) {
    check_tile(it.reg);
    const bool is_store = it.prefix == 2;
    if (!is_store) memset(tiles.data[it.reg], 0, sizeof(tiles.data[it.reg]));
    for (int row = 0; row < tiles.config.rows[it.reg]; ++row) {
        uint8_t * memory = it.address + row * it.stride;
        uint8_t * tile = tiles.data[it.reg][row];
        memcpy(is_store ? memory : tile, is_store ? tile : memory, tiles.config.column_bytes[it.reg]);
    }
}

volatile bool is_refused = false;

void carry_out(int, siginfo_t *, void * context) {
    is_refused = true;
    mcontext_t & machine = static_cast<ucontext_t *>(context)->uc_mcontext;
    const Instruction it = decode(machine);
    if (it.opcode == 0x49 && it.has_memory && it.prefix == 0) {
        load_config(it.address);
    } else if (it.opcode == 0x49 && it.has_memory && it.prefix == 1) {
        memcpy(it.address, &tiles.config, sizeof(tiles.config));
    } else if (it.opcode == 0x49 && !it.has_memory && it.prefix == 0) {
        memset(&tiles, 0, sizeof(tiles));
    } else if (it.opcode == 0x49 && !it.has_memory && it.prefix == 3) {
        check_tile(it.reg);
        memset(tiles.data[it.reg], 0, sizeof(tiles.data[it.reg]));
    } else if (it.opcode == 0x4B && it.has_memory && it.prefix != 0) {
        move(it);
    } else if (it.opcode == 0x5E && !it.has_memory) {
        multiply(it);
    } else {
        refuse(SIGILL, "an instruction that is not known here");
    }
    machine.gregs[REG_RIP] += it.length;
}

__attribute__((constructor)) void install() {
    struct sigaction action = {};
    action.sa_sigaction = carry_out;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    set_action(SIGILL, &action, nullptr);
    __asm__ volatile("tilerelease" : : : "memory");
    if (!is_refused) _exit(kHasTiles);
}

}  // namespace

// Keeps Python's faulthandler, which pytest enables, from taking SIGILL.
extern "C" int sigaction(int signal, const struct sigaction * action, struct sigaction * old) {
    return set_action(signal, signal == SIGILL ? nullptr : action, old);
}

// Grants what Linux grants where the processor has AMX.
extern "C" long syscall(long number, ...) {
    constexpr long kRequestPermission = 0x1023;
    long arguments[6];
    va_list list;
    va_start(list, number);
    for (long & argument : arguments) argument = va_arg(list, long);
    va_end(list);
    if (number == SYS_arch_prctl && arguments[0] == kRequestPermission) return 0;
    register long r10 __asm__("r10") = arguments[3];
    register long r8 __asm__("r8") = arguments[4];
    register long r9 __asm__("r9") = arguments[5];
    long result = number;
    __asm__ volatile("syscall"
                     : "+a"(result)
                     : "D"(arguments[0]), "S"(arguments[1]), "d"(arguments[2]), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result >= 0 || result < -4095) return result;
    errno = static_cast<int>(-result);
    return -1;
}

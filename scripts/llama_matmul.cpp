// Products of quantized weights for x86-64 with AVX-512 VNNI: what scripts/llama_matmul.cmake adds to ggml's CPU backend.
//
// It is put at the end of ggml-cpu/tiled/tiled.cpp, whose two entries it stands in for; those are renamed, and still do
// all that is not handled here. They have such kernels for blocks of 256 weights (Q4_K, Q6_K and so on). Here are those
// of 32: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL and MXFP4, among them what quantizing falls back to where the width of a
// layer is no multiple of 256. ggml multiplies them row by row, or without VNNI. Of weights that ggml has laid out anew for
// kernels of their own (`extra`) Q4_0 in groups of 8 rows is taken from these, with some rows of activations; the others,
// and AMX, stay with ggml.
//
// Rows of activations are quantized as ggml does it, and 16 of them lie in the lanes of a vector, four numbers in each
// lane. Weights are unpacked once to bytes without sign, of which four at a time are multiplied with all lanes. The sums
// of a block are exact, so that results differ from ggml's only by the order in which blocks are added.

#include "ggml-backend-impl.h"
#include "repack.h"
#include "simd-mappings.h"
#include "traits.h"

#include <algorithm>
#include <type_traits>

// In traits.cpp.
bool ggml_cpu_extra_compute_forward_stock(ggml_compute_params * params, ggml_tensor * op);
bool ggml_cpu_extra_work_size_stock(int n_threads, const ggml_tensor * op, size_t * size);

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512VNNI__)

namespace {

constexpr int BLOCK = 32;
constexpr int LANES = 16;
// Rows of weights that are unpacked together: their results are a cache line of each row of activations.
constexpr int PANEL = 16;
// Rows of activations. Measured: with fewer, unpacking costs more than it saves, beside ggml's plain kernels and beside
// those for weights that it has laid out anew.
constexpr int FEWEST_ROWS = 4;
constexpr int FEWEST_ROWS_REPACKED = 8;

// A block of 16 rows of activations. Those of types with a minimum take Q8_1, whose `sums` count; of others `start` does.
struct alignas(64) Activations {
    int8_t codes[BLOCK / 4][LANES][4];
    float scales[LANES];
    union {
        int32_t start[LANES]; // takes away what was added to the weights to have no sign
        float sums[LANES];    // of the block, scaled
    };
};

// A block of 16 rows of weights: scale * code + minimum.
struct alignas(64) Weights {
    uint8_t codes[PANEL][BLOCK];
    float scales[PANEL];
    float minima[PANEL];
};

struct V16 {
    using Ints = __m512i;
    using Floats = __m512;
    static Ints zero() { return _mm512_setzero_si512(); }
    static Floats zero_floats() { return _mm512_setzero_ps(); }
    static Ints load(const void * from) { return _mm512_load_si512(from); }
    static Floats load_floats(const float * from) { return _mm512_load_ps(from); }
    static Ints four(const uint8_t * codes) { return _mm512_set1_epi32(*reinterpret_cast<const int *>(codes)); }
    static Ints dot(Ints sum, Ints weights, Ints activations) {
        return _mm512_dpbusd_epi32(sum, weights, activations);
    }
    static Floats to_floats(Ints v) { return _mm512_cvtepi32_ps(v); }
    static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
    static Floats fma(float a, Floats b, Floats c) { return _mm512_fmadd_ps(_mm512_set1_ps(a), b, c); }
    static void store(float * to, Floats v) { _mm512_store_ps(to, v); }
};

struct V8 {
    using Ints = __m256i;
    using Floats = __m256;
    static Ints zero() { return _mm256_setzero_si256(); }
    static Floats zero_floats() { return _mm256_setzero_ps(); }
    static Ints load(const void * from) { return _mm256_load_si256(static_cast<const __m256i *>(from)); }
    static Floats load_floats(const float * from) { return _mm256_load_ps(from); }
    static Ints four(const uint8_t * codes) { return _mm256_set1_epi32(*reinterpret_cast<const int *>(codes)); }
    static Ints dot(Ints sum, Ints weights, Ints activations) {
        return _mm256_dpbusd_epi32(sum, weights, activations);
    }
    static Floats to_floats(Ints v) { return _mm256_cvtepi32_ps(v); }
    static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
    static Floats fma(float a, Floats b, Floats c) { return _mm256_fmadd_ps(_mm256_set1_ps(a), b, c); }
    static void store(float * to, Floats v) { _mm256_store_ps(to, v); }
};

inline __m256i nibbles(__m128i bytes) {
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes), _mm_srli_epi16(bytes, 4), 1);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

inline __m256i nibbles(const uint8_t * from) {
    return nibbles(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

inline __m256i fifth_bits(__m256i low, const uint8_t * from) {
    uint32_t high;
    memcpy(&high, from, sizeof(high));
    return _mm256_mask_add_epi8(low, high, low, _mm256_set1_epi8(16));
}

// Of a table of signed bytes, 128 more.
inline __m256i looked_up(const int8_t (&table)[16], const uint8_t * from) {
    const __m128i values = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table));
    const __m256i found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles(from));
    return _mm256_xor_si256(found, _mm256_set1_epi8(static_cast<char>(0x80)));
}

inline float half(ggml_half value) {
    return GGML_CPU_FP16_TO_FP32(value);
}

// What a type of block is made of. BIAS is what `codes` adds to each weight, of types without minima.
template <typename Block> struct Format;

template <> struct Format<block_q4_0> {
    static constexpr int BIAS = 8;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_q4_0 & b) { return nibbles(b.qs); }
    static float scale(const block_q4_0 & b) { return half(b.d); }
};

// 8 rows, of which eight bytes follow each other; their codes have a sign.
template <> struct Format<block_q4_0x8> {
    static constexpr int BIAS = 8;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_q4_0x8 & b, int row) {
        int64_t low, high;
        memcpy(&low, b.qs + 8 * row, sizeof(low));
        memcpy(&high, b.qs + 8 * (8 + row), sizeof(high));
        return nibbles(_mm_xor_si128(_mm_set_epi64x(high, low), _mm_set1_epi8(static_cast<char>(0x88))));
    }
    static float scale(const block_q4_0x8 & b, int row) { return half(b.d[row]); }
};

template <> struct Format<block_q4_1> {
    static constexpr int BIAS = 0;
    static constexpr bool HAS_MINIMA = true;
    static __m256i codes(const block_q4_1 & b) { return nibbles(b.qs); }
    static float scale(const block_q4_1 & b) { return half(b.data.data.d); }
    static float minimum(const block_q4_1 & b) { return half(b.data.data.m); }
};

template <> struct Format<block_q5_0> {
    static constexpr int BIAS = 16;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_q5_0 & b) { return fifth_bits(nibbles(b.qs), b.qh); }
    static float scale(const block_q5_0 & b) { return half(b.d); }
};

template <> struct Format<block_q5_1> {
    static constexpr int BIAS = 0;
    static constexpr bool HAS_MINIMA = true;
    static __m256i codes(const block_q5_1 & b) { return fifth_bits(nibbles(b.qs), b.qh); }
    static float scale(const block_q5_1 & b) { return half(b.data.data.d); }
    static float minimum(const block_q5_1 & b) { return half(b.data.data.m); }
};

template <> struct Format<block_q8_0> {
    static constexpr int BIAS = 128;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_q8_0 & b) {
        const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(b.qs));
        return _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(0x80)));
    }
    static float scale(const block_q8_0 & b) { return half(b.d); }
};

template <> struct Format<block_iq4_nl> {
    static constexpr int BIAS = 128;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_iq4_nl & b) { return looked_up(kvalues_iq4nl, b.qs); }
    static float scale(const block_iq4_nl & b) { return half(b.d); }
};

template <> struct Format<block_mxfp4> {
    static constexpr int BIAS = 128;
    static constexpr bool HAS_MINIMA = false;
    static __m256i codes(const block_mxfp4 & b) { return looked_up(kvalues_mxfp4, b.qs); }
    static float scale(const block_mxfp4 & b) { return GGML_CPU_E8M0_TO_FP32_HALF(b.e); }
};

// One product, and where its parts lie in the work buffer: activations, [groups of 16 rows][blocks]; then for each
// thread a panel of weights, [blocks], and a row as ggml quantizes it.
struct Product {
    const ggml_tensor * weights;
    const ggml_tensor * activations;
    ggml_tensor * dst;
    int64_t num_blocks;
    int64_t num_rows; // of activations
    int64_t num_outputs;

    explicit Product(ggml_tensor * dst) :
        weights(dst->src[0]), activations(dst->src[1]), dst(dst), num_blocks(weights->ne[0] / BLOCK),
        num_rows(activations->ne[1]), num_outputs(weights->ne[1]) {}

    int64_t num_groups() const { return (num_rows + LANES - 1) / LANES; }
    size_t activations_size() const { return num_groups() * num_blocks * sizeof(Activations); }
    size_t panel_size() const { return num_blocks * sizeof(Weights); }
    size_t row_size() const { return GGML_PAD(num_blocks * sizeof(block_q8_1), 64); }
    size_t work_size(int num_threads) const {
        return 64 + activations_size() + num_threads * (panel_size() + row_size());
    }
};

// Quantize a thread's share of the blocks of all rows.
template <typename Format, typename Quantized>
void pack(const ggml_compute_params * params, const Product & p, Activations * packed, Quantized * row) {
    const auto from_float =
        ggml_get_type_traits_cpu(Format::HAS_MINIMA ? GGML_TYPE_Q8_1 : GGML_TYPE_Q8_0)->from_float;
    const int64_t first = params->ith * p.num_blocks / params->nth;
    const int64_t end = (params->ith + 1) * p.num_blocks / params->nth;
    for (int64_t r = 0; r < p.num_groups() * LANES; ++r) {
        Activations * group = packed + r / LANES * p.num_blocks;
        const int64_t lane = r % LANES;
        if (r >= p.num_rows) {
            for (int64_t b = first; b < end; ++b) {
                group[b].scales[lane] = 0.0f;
                group[b].start[lane] = 0;
            }
            continue;
        }
        const char * data = static_cast<const char *>(p.activations->data) + r * p.activations->nb[1];
        from_float(reinterpret_cast<const float *>(data) + first * BLOCK, row, (end - first) * BLOCK);
        for (int64_t b = first; b < end; ++b) {
            const Quantized & from = row[b - first];
            for (int i = 0; i < BLOCK / 4; ++i) {
                memcpy(group[b].codes[i][lane], from.qs + 4 * i, 4);
            }
            if constexpr (Format::HAS_MINIMA) {
                group[b].scales[lane] = half(from.data.data.d);
                group[b].sums[lane] = half(from.data.data.s);
            } else {
                int sum = 0;
                for (int i = 0; i < BLOCK; ++i) {
                    sum += from.qs[i];
                }
                group[b].scales[lane] = half(from.d);
                group[b].start[lane] = -Format::BIAS * sum;
            }
        }
    }
}

// Unpack 16 rows of weights; the last of all stands in for those that are missing.
template <typename Format, typename Block>
void unpack(const Product & p, int64_t first, Weights * panel, const Block *) {
    const Block * rows[PANEL];
    for (int r = 0; r < PANEL; ++r) {
        const int64_t row = std::min(first + r, p.num_outputs - 1);
        rows[r] = reinterpret_cast<const Block *>(static_cast<const char *>(p.weights->data) + row * p.weights->nb[1]);
    }
    for (int64_t b = 0; b < p.num_blocks; ++b) {
        for (int r = 0; r < PANEL; ++r) {
            const Block & block = rows[r][b];
            _mm256_store_si256(reinterpret_cast<__m256i *>(panel[b].codes[r]), Format::codes(block));
            panel[b].scales[r] = Format::scale(block);
            if constexpr (Format::HAS_MINIMA) {
                panel[b].minima[r] = Format::minimum(block);
            }
        }
    }
}

// The same, of rows in groups of 8.
template <typename Format>
void unpack(const Product & p, int64_t first, Weights * panel, const block_q4_0x8 *) {
    const block_q4_0x8 * groups = static_cast<const block_q4_0x8 *>(p.weights->data);
    for (int half = 0; half < PANEL; half += 8) {
        const block_q4_0x8 * group = groups + std::min(first + half, p.num_outputs - 8) / 8 * p.num_blocks;
        for (int64_t b = 0; b < p.num_blocks; ++b) {
            for (int r = 0; r < 8; ++r) {
                _mm256_store_si256(reinterpret_cast<__m256i *>(panel[b].codes[half + r]), Format::codes(group[b], r));
                panel[b].scales[half + r] = Format::scale(group[b], r);
            }
        }
    }
}

// M rows of weights, from row `first` of a panel, times G groups of activations. Shape of out: (G, 16, 16 lanes).
// Meanwhile `bytes_ahead` from `ahead` are loaded, for each block.
template <typename V, int M, int G, bool HAS_MINIMA>
void multiply(const Weights * panel, int first, const Activations * groups, int64_t num_blocks, const char * ahead,
        int bytes_ahead, float * out) {
    typename V::Floats total[M][G];
    for (int m = 0; m < M; ++m) {
        for (int g = 0; g < G; ++g) {
            total[m][g] = V::zero_floats();
        }
    }
    for (int64_t b = 0; b < num_blocks; ++b) {
        for (int i = 0; i < bytes_ahead; i += 64) {
            _mm_prefetch(ahead + b * bytes_ahead + i, _MM_HINT_T1);
        }
        typename V::Ints dots[M][G];
        for (int g = 0; g < G; ++g) {
            const typename V::Ints start = HAS_MINIMA ? V::zero() : V::load(groups[g * num_blocks + b].start);
            for (int m = 0; m < M; ++m) {
                dots[m][g] = start;
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < BLOCK / 4; ++i) {
            typename V::Ints activations[G];
            for (int g = 0; g < G; ++g) {
                activations[g] = V::load(groups[g * num_blocks + b].codes[i]);
            }
            for (int m = 0; m < M; ++m) {
                const typename V::Ints weights = V::four(panel[b].codes[first + m] + 4 * i);
                for (int g = 0; g < G; ++g) {
                    dots[m][g] = V::dot(dots[m][g], weights, activations[g]);
                }
            }
        }
        for (int g = 0; g < G; ++g) {
            const Activations & group = groups[g * num_blocks + b];
            const typename V::Floats scales = V::load_floats(group.scales);
            for (int m = 0; m < M; ++m) {
                const typename V::Floats scaled = V::mul(V::to_floats(dots[m][g]), scales);
                total[m][g] = V::fma(panel[b].scales[first + m], scaled, total[m][g]);
                if constexpr (HAS_MINIMA) {
                    total[m][g] = V::fma(panel[b].minima[first + m], V::load_floats(group.sums), total[m][g]);
                }
            }
        }
    }
    for (int g = 0; g < G; ++g) {
        for (int m = 0; m < M; ++m) {
            V::store(out + (g * PANEL + first + m) * LANES, total[m][g]);
        }
    }
}

// The transpose of 16 vectors.
void transpose(__m512 (&v)[16]) {
    __m512 t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        v[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
        v[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xEE);
        v[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
        v[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(v[i], v[i + 4], 0xDD);
        t[i + 8] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(v[i + 8], v[i + 12], 0xDD);
    }
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        v[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
        v[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xDD);
        v[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xDD);
    }
}

// Write a group's results, of up to 16 rows of weights and of activations, whose first are given.
void write(const Product & p, const float * results, int64_t first_weights, int64_t first_row) {
    __m512 v[LANES];
    for (int m = 0; m < PANEL; ++m) {
        v[m] = _mm512_load_ps(results + m * LANES);
    }
    transpose(v);
    const int64_t num_weights = std::min<int64_t>(PANEL, p.num_outputs - first_weights);
    const __mmask16 mask = static_cast<__mmask16>((1 << num_weights) - 1);
    char * data = static_cast<char *>(p.dst->data) + first_weights * sizeof(float);
    for (int lane = 0; lane < LANES && first_row + lane < p.num_rows; ++lane) {
        _mm512_mask_storeu_ps(data + (first_row + lane) * p.dst->nb[1], mask, v[lane]);
    }
}

// G groups of activations, from row `row`, times a panel of weights.
template <typename V, int M, int G, bool HAS_MINIMA>
void multiply_groups(const Product & p, const Weights * panel, int64_t first, int64_t row, const Activations * packed,
        const char * ahead, int bytes_ahead) {
    alignas(64) float out[G * PANEL * LANES];
    const Activations * groups = packed + row / LANES * p.num_blocks;
    for (int m = 0; m < PANEL; m += M) {
        multiply<V, M, G, HAS_MINIMA>(panel, m, groups, p.num_blocks, ahead, m ? 0 : bytes_ahead, out);
    }
    for (int g = 0; g < G; ++g) {
        write(p, out + g * PANEL * LANES, first, row + g * LANES);
    }
}

// All activations times a panel of weights, the first of which is row `first`.
template <bool HAS_MINIMA>
void multiply_panel(const Product & p, const Weights * panel, int64_t first, const Activations * packed,
        const char * ahead, int bytes_ahead) {
    for (int64_t row = 0; row < p.num_rows; row += 2 * LANES, bytes_ahead = 0) {
        const int64_t rest = p.num_rows - row;
        if (rest <= LANES / 2) {
            multiply_groups<V8, 8, 1, HAS_MINIMA>(p, panel, first, row, packed, ahead, bytes_ahead);
        } else if (rest <= LANES) {
            multiply_groups<V16, 8, 1, HAS_MINIMA>(p, panel, first, row, packed, ahead, bytes_ahead);
        } else {
            multiply_groups<V16, 4, 2, HAS_MINIMA>(p, panel, first, row, packed, ahead, bytes_ahead);
        }
    }
}

template <typename Block>
void multiply_all(const ggml_compute_params * params, const Product & p) {
    using F = Format<Block>;
    using Quantized = std::conditional_t<F::HAS_MINIMA, block_q8_1, block_q8_0>;
    const uintptr_t work = (reinterpret_cast<uintptr_t>(params->wdata) + 63) & ~uintptr_t{63};
    const uintptr_t own = work + p.activations_size() + params->ith * (p.panel_size() + p.row_size());
    Activations * packed = reinterpret_cast<Activations *>(work);
    Weights * panel = reinterpret_cast<Weights *>(own);
    GGML_ASSERT(p.work_size(params->nth) <= params->wsize);

    pack<F, Quantized>(params, p, packed, reinterpret_cast<Quantized *>(own + p.panel_size()));
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);

    const int bytes_ahead = static_cast<int>(PANEL * p.weights->nb[1] / p.num_blocks);
    const int64_t num_panels = (p.num_outputs + PANEL - 1) / PANEL;
    const int64_t panels = std::clamp<int64_t>(num_panels / (8 * params->nth), 1, 32); // of a chunk
    for (int64_t chunk = params->ith; chunk * panels < num_panels;
            chunk = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        for (int64_t i = chunk * panels; i < std::min(num_panels, (chunk + 1) * panels); ++i) {
            const int64_t first = i * PANEL;
            unpack<F>(p, first, panel, static_cast<const Block *>(nullptr));
            const char * next = static_cast<const char *>(p.weights->data) + (first + PANEL) * p.weights->nb[1];
            multiply_panel<F::HAS_MINIMA>(p, panel, first, packed, next, bytes_ahead);
        }
    }
}

bool has_own_kernel(const ggml_tensor * weights) {
    switch (weights->type) {
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_MXFP4:
            return true;
        default:
            return false;
    }
}

// Whether ggml has laid out the weights in the groups of 8 rows that Format<block_q4_0x8> reads.
bool is_repacked(const ggml_tensor * weights) {
    return weights->type == GGML_TYPE_Q4_0 && weights->ne[1] % 8 == 0 && weights->extra != nullptr &&
        weights->buffer != nullptr && weights->buffer->buft == ggml_backend_cpu_repack_buffer_type();
}

// Whether a product is computed here. All threads come to the same answer.
bool is_own(const ggml_tensor * dst) {
    const ggml_tensor * weights = dst->src[0];
    const ggml_tensor * activations = dst->src[1];
    return dst->op == GGML_OP_MUL_MAT && has_own_kernel(weights) &&
        (weights->extra == nullptr || is_repacked(weights)) && activations->type == GGML_TYPE_F32 &&
        ggml_is_matrix(weights) && ggml_is_matrix(activations) && ggml_is_matrix(dst) &&
        activations->nb[0] == sizeof(float) && dst->nb[0] == sizeof(float) &&
        activations->ne[1] >= (weights->extra ? FEWEST_ROWS_REPACKED : FEWEST_ROWS);
}

} // namespace

size_t ggml_tiled_wdata_size(int n_tasks, ggml_tensor * dst) {
    return is_own(dst) ? Product(dst).work_size(n_tasks) : ggml_tiled_wdata_size_stock(n_tasks, dst);
}

bool ggml_compute_forward_mul_mat_tiled(const ggml_compute_params * params, ggml_tensor * dst) {
    if (params->use_ref || !is_own(dst)) {
        return ggml_compute_forward_mul_mat_tiled_stock(params, dst);
    }
    const Product product(dst);
    if (is_repacked(dst->src[0])) {
        multiply_all<block_q4_0x8>(params, product);
        return true;
    }
    switch (dst->src[0]->type) {
        case GGML_TYPE_Q4_0: multiply_all<block_q4_0>(params, product); break;
        case GGML_TYPE_Q4_1: multiply_all<block_q4_1>(params, product); break;
        case GGML_TYPE_Q5_0: multiply_all<block_q5_0>(params, product); break;
        case GGML_TYPE_Q5_1: multiply_all<block_q5_1>(params, product); break;
        case GGML_TYPE_Q8_0: multiply_all<block_q8_0>(params, product); break;
        case GGML_TYPE_IQ4_NL: multiply_all<block_iq4_nl>(params, product); break;
        default: multiply_all<block_mxfp4>(params, product); break;
    }
    return true;
}

// Have ggml's kernels for weights of other layouts leave to those above what is theirs.
bool ggml_cpu_extra_compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    return (params->use_ref || !is_own(op)) && ggml_cpu_extra_compute_forward_stock(params, op);
}

bool ggml_cpu_extra_work_size(int n_threads, const ggml_tensor * op, size_t * size) {
    return !is_own(op) && ggml_cpu_extra_work_size_stock(n_threads, op, size);
}

#else

size_t ggml_tiled_wdata_size(int n_tasks, ggml_tensor * dst) {
    return ggml_tiled_wdata_size_stock(n_tasks, dst);
}

bool ggml_compute_forward_mul_mat_tiled(const ggml_compute_params * params, ggml_tensor * dst) {
    return ggml_compute_forward_mul_mat_tiled_stock(params, dst);
}

bool ggml_cpu_extra_compute_forward(ggml_compute_params * params, ggml_tensor * op) {
    return ggml_cpu_extra_compute_forward_stock(params, op);
}

bool ggml_cpu_extra_work_size(int n_threads, const ggml_tensor * op, size_t * size) {
    return ggml_cpu_extra_work_size_stock(n_threads, op, size);
}

#endif

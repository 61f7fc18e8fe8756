// What llama_attention.cpp computes with: scores of rows of queries against cells, their softmax, and sums of values,
// in AVX-512 where ggml is built for it, else in AVX2.

#pragma once

namespace {

constexpr int CELLS = GGML_FA_TILE_KV;
constexpr int ROWS = GGML_FA_TILE_Q;
constexpr int NUMBERS_OF_LINE = CACHE_LINE_SIZE / sizeof(ggml_fp16_t);

template <int N> struct Lanes;

template <> struct Lanes<8> {
    using Vec = __m256;
    static Vec all(float x) { return _mm256_set1_ps(x); }
    static Vec load(const float * from) { return _mm256_loadu_ps(from); }
    static Vec load_f16(const void * from) {
        return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(from)));
    }
    static void store(float * to, Vec x) { _mm256_storeu_ps(to, x); }
    static Vec add(Vec x, Vec y) { return _mm256_add_ps(x, y); }
    static Vec sub(Vec x, Vec y) { return _mm256_sub_ps(x, y); }
    static Vec mul(Vec x, Vec y) { return _mm256_mul_ps(x, y); }
    static Vec div(Vec x, Vec y) { return _mm256_div_ps(x, y); }
    static Vec fma(Vec x, Vec y, Vec z) { return _mm256_fmadd_ps(x, y, z); }
    static Vec max(Vec x, Vec y) { return _mm256_max_ps(x, y); }
};

// As ggml_v_expf() has it.
#if defined(__AVX512F__) && defined(__AVX512DQ__)

template <> struct Lanes<16> {
    using Vec = __m512;
    static Vec all(float x) { return _mm512_set1_ps(x); }
    static Vec load(const float * from) { return _mm512_loadu_ps(from); }
    static Vec load_f16(const void * from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i *>(from)));
    }
    static void store(float * to, Vec x) { _mm512_storeu_ps(to, x); }
    static Vec add(Vec x, Vec y) { return _mm512_add_ps(x, y); }
    static Vec sub(Vec x, Vec y) { return _mm512_sub_ps(x, y); }
    static Vec mul(Vec x, Vec y) { return _mm512_mul_ps(x, y); }
    static Vec div(Vec x, Vec y) { return _mm512_div_ps(x, y); }
    static Vec fma(Vec x, Vec y, Vec z) { return _mm512_fmadd_ps(x, y, z); }
    static Vec max(Vec x, Vec y) { return _mm512_max_ps(x, y); }
};

constexpr int LANES = 16;
// Rows, with 4 cells or 4 vectors, whose sums 32 registers hold.
constexpr int ROWS_OF_SCORE = 6;
constexpr int VECTORS_OF_OUT = 4;

inline __m256 low_half(__m512 x) { return _mm512_castps512_ps256(x); }
inline __m256 high_half(__m512 x) { return _mm512_extractf32x8_ps(x, 1); }
inline __m256 folded(__m512 x) { return _mm256_add_ps(low_half(x), high_half(x)); }
inline __m256 folded_highest(__m512 x) { return _mm256_max_ps(low_half(x), high_half(x)); }
// Followed by 8 times `rest`.
inline __m512 widened(__m256 x, float rest) { return _mm512_insertf32x8(_mm512_set1_ps(rest), x, 0); }

#else

constexpr int LANES = 8;
// The same for 16 registers.
constexpr int ROWS_OF_SCORE = 3;
constexpr int VECTORS_OF_OUT = 2;

inline __m256 folded(__m256 x) { return x; }
inline __m256 folded_highest(__m256 x) { return x; }
inline __m256 widened(__m256 x, float) { return x; }

#endif

constexpr int ROWS_OF_OUT = 6;
using Wide = Lanes<LANES>;
using Narrow = Lanes<8>;

// The vectors of one KV head, one for each cell.
struct Cells {
    const char * data;
    size_t stride; // bytes
    int64_t width; // numbers in each, a multiple of 8
};

// Walks over the cells of a tile that come next, all KV heads of each, one vector of keys and of values at a time, and
// has them fetched into the L2 cache, which can wait for more lines at a time than the L1 cache.
struct Ahead {
    Cells keys; // of the tile's first KV head
    Cells values;
    size_t keys_of_head; // bytes from one KV head to the next
    size_t values_of_head;
    int64_t num_heads;
    int64_t cell;
    int64_t end;
    int64_t head = 0;

    // It stays where the cells end.
    void next(const char *& key, const char *& value) {
        key = keys.data + cell * keys.stride + head * keys_of_head;
        value = values.data + cell * values.stride + head * values_of_head;
        if (cell < end && ++head == num_heads) {
            head = 0;
            ++cell;
        }
    }

    void fetch(int64_t num_cells) {
        for (int64_t i = std::min(num_cells, end - cell) * num_heads; i > 0; --i) {
            const char * key;
            const char * value;
            next(key, value);
            for (int64_t d = 0; d < keys.width; d += NUMBERS_OF_LINE) {
                _mm_prefetch(key + 2 * d, _MM_HINT_T1);
            }
            for (int64_t d = 0; d < values.width; d += NUMBERS_OF_LINE) {
                _mm_prefetch(value + 2 * d, _MM_HINT_T1);
            }
        }
    }
};

// The sum of each of four vectors.
inline __m128 sums(const Wide::Vec (&v)[4]) {
    const __m256 low = _mm256_hadd_ps(folded(v[0]), folded(v[1]));
    const __m256 high = _mm256_hadd_ps(folded(v[2]), folded(v[3]));
    const __m256 all = _mm256_hadd_ps(low, high);
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

inline float highest_of(Wide::Vec x) {
    const __m256 eight = folded_highest(x);
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

inline float sum_of(Wide::Vec x) {
    const __m256 eight = folded(x);
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

// scores[r][c] = queries[r] . keys[c] of R rows and n cells, a multiple of 4. The FIRST rows have the lines of as many
// vectors fetched that come later.
template <int R, bool FIRST>
void score(float * scores, const float * queries, const Cells & keys, Ahead & ahead, int n) {
    for (int c = 0; c < n; c += 4) {
        const char * key = keys.data + c * keys.stride;
        const char * next_keys[4];
        const char * next_values[4];
        for (int j = 0; FIRST && j < 4; ++j) {
            ahead.next(next_keys[j], next_values[j]);
        }
        Wide::Vec acc[R][4] = {};
        int64_t d = 0;
        for (; d + LANES <= keys.width; d += LANES) {
            for (int j = 0; FIRST && d % NUMBERS_OF_LINE == 0 && j < 4; ++j) {
                _mm_prefetch(next_keys[j] + 2 * d, _MM_HINT_T1);
                _mm_prefetch(next_values[j] + 2 * d, _MM_HINT_T1);
            }
            Wide::Vec k[4];
            for (int j = 0; j < 4; ++j) {
                k[j] = Wide::load_f16(key + j * keys.stride + 2 * d);
            }
            for (int r = 0; r < R; ++r) {
                const Wide::Vec q = Wide::load(queries + r * keys.width + d);
                for (int j = 0; j < 4; ++j) {
                    acc[r][j] = Wide::fma(q, k[j], acc[r][j]);
                }
            }
        }
        for (int r = 0; r < R && d < keys.width; ++r) { // 8 are left
            const Wide::Vec q = widened(Narrow::load(queries + r * keys.width + d), 0.0f);
            for (int j = 0; j < 4; ++j) {
                const Wide::Vec k = widened(Narrow::load_f16(key + j * keys.stride + 2 * d), 0.0f);
                acc[r][j] = Wide::fma(q, k, acc[r][j]);
            }
        }
        for (int r = 0; r < R; ++r) {
            _mm_storeu_ps(scores + r * CELLS + c, sums(acc[r]));
        }
    }
}

// Of `rows` rows, R at most.
template <int R, bool FIRST>
void score_some(float * scores, const float * queries, int rows, const Cells & keys, Ahead & ahead, int n) {
    if (rows == R) {
        score<R, FIRST>(scores, queries, keys, ahead, n);
    } else if constexpr (R > 1) {
        score_some<R - 1, FIRST>(scores, queries, rows, keys, ahead, n);
    }
}

// How many rows to take at once of those left, so that all takes are alike.
int share(int rows, int most) {
    const int takes = (rows + most - 1) / most;
    return (rows + takes - 1) / takes;
}

void score_rows(float * scores, const float * queries, int rows, const Cells & keys, Ahead & ahead, int n) {
    int some = share(rows, ROWS_OF_SCORE);
    score_some<ROWS_OF_SCORE, true>(scores, queries, some, keys, ahead, n);
    for (int r = some; r < rows; r += some) {
        some = share(rows - r, ROWS_OF_SCORE);
        score_some<ROWS_OF_SCORE, false>(scores + r * CELLS, queries + r * keys.width, some, keys, ahead, n);
    }
}

// out[r] += weights[r] * values of R rows, n cells, and N vectors of L at number d.
template <typename L, int N, int R>
void accumulate_part(float * out, const float * weights, const Cells & values, int n, int64_t d) {
    constexpr int lanes = sizeof(typename L::Vec) / sizeof(float);
    typename L::Vec acc[R][N];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) {
            acc[r][i] = L::load(out + r * values.width + d + i * lanes);
        }
    }
    const char * value = values.data + 2 * d;
    for (int c = 0; c < n; ++c, value += values.stride) {
        typename L::Vec v[N];
        for (int i = 0; i < N; ++i) {
            v[i] = L::load_f16(value + 2 * i * lanes);
        }
        for (int r = 0; r < R; ++r) {
            const typename L::Vec weight = L::all(weights[r * CELLS + c]);
            for (int i = 0; i < N; ++i) {
                acc[r][i] = L::fma(weight, v[i], acc[r][i]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < N; ++i) {
            L::store(out + r * values.width + d + i * lanes, acc[r][i]);
        }
    }
}

template <int R>
void accumulate(float * out, const float * weights, const Cells & values, int n) {
    int64_t d = 0;
    for (; d + VECTORS_OF_OUT * LANES <= values.width; d += VECTORS_OF_OUT * LANES) {
        accumulate_part<Wide, VECTORS_OF_OUT, R>(out, weights, values, n, d);
    }
    for (; d + LANES <= values.width; d += LANES) {
        accumulate_part<Wide, 1, R>(out, weights, values, n, d);
    }
    if (d < values.width) {
        accumulate_part<Narrow, 1, R>(out, weights, values, n, d);
    }
}

template <int R>
void accumulate_some(float * out, const float * weights, int rows, const Cells & values, int n) {
    if (rows == R) {
        accumulate<R>(out, weights, values, n);
    } else if constexpr (R > 1) {
        accumulate_some<R - 1>(out, weights, rows, values, n);
    }
}

void accumulate_rows(float * out, const float * weights, int rows, const Cells & values, int n) {
    for (int r = 0, some; r < rows; r += some) {
        some = share(rows - r, ROWS_OF_OUT);
        accumulate_some<ROWS_OF_OUT>(out + r * values.width, weights + r * CELLS, some, values, n);
    }
}

// 8 cells.
bool all_hidden(const ggml_fp16_t * mask) {
    const __m128i hidden = _mm_set1_epi16(static_cast<short>(0xFC00)); // -inf
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(mask));
    return _mm_movemask_epi8(_mm_cmpeq_epi16(bits, hidden)) == 0xFFFF;
}

// How far the cells that a token sees reach among the next n of its mask, in eights (n is a multiple of 8).
int64_t end_of_visible(const ggml_fp16_t * mask, int64_t n) {
    while (n > 0 && all_hidden(mask + n - 8)) {
        n -= 8;
    }
    return n;
}

// Where they begin, in eights; n if there is none.
int64_t first_visible(const ggml_fp16_t * mask, int64_t n) {
    int64_t c = 0;
    while (c < n && all_hidden(mask + c)) {
        c += 8;
    }
    return c;
}

// softcap * tanh(score / softcap), where tanh(x) = 1 - 2 / (exp(2x) + 1)
Wide::Vec capped(Wide::Vec score, float softcap) {
    const Wide::Vec power = ggml_v_expf(Wide::mul(score, Wide::all(2.0f / softcap)));
    const Wide::Vec rest = Wide::div(Wide::all(2.0f * softcap), Wide::add(power, Wide::all(1.0f)));
    return Wide::sub(Wide::all(softcap), rest);
}

// Cap a row of scores and add the mask; the highest of them. n is a multiple of 8, and the row is filled up with -inf
// to one of LANES.
float add_mask(float * scores, const ggml_fp16_t * mask, float slope, float softcap, int n) {
    Wide::Vec highest = Wide::all(-INFINITY);
    for (int c = 0; c < n; c += LANES) {
        const bool is_whole = c + LANES <= n;
        Wide::Vec score = is_whole ? Wide::load(scores + c) : widened(Narrow::load(scores + c), 0.0f);
        if (softcap != 0.0f) {
            score = capped(score, softcap);
        }
        const Wide::Vec bias = is_whole ? Wide::load_f16(mask + c) : widened(Narrow::load_f16(mask + c), -INFINITY);
        score = Wide::fma(Wide::all(slope), bias, score);
        Wide::store(scores + c, score);
        highest = Wide::max(highest, score);
    }
    return highest_of(highest);
}

// scores = exp(scores - max), up to a multiple of LANES; their sum.
float exponentiate(float * scores, float max, int n) {
    Wide::Vec sum = Wide::all(0.0f);
    for (int c = 0; c < n; c += LANES) {
        const Wide::Vec weights = ggml_v_expf(Wide::sub(Wide::load(scores + c), Wide::all(max)));
        Wide::store(scores + c, weights);
        sum = Wide::add(sum, weights);
    }
    return sum_of(sum);
}

} // namespace

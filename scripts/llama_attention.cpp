// Flash attention over an f16 KV cache for x86-64 with AVX2: what scripts/llama_build.cmake adds to ggml's CPU backend.
//
// It is put at the end of ggml-cpu/ops.cpp, whose own ggml_compute_forward_flash_attn_ext() it stands in for; that one
// is renamed, and still does all that is not handled here. ggml's way for fewer than 64 tokens of a sequence (a decode,
// a short prompt, what follows a shared prefix) calls a function or two for each query head, token and cell, and with
// 32 sequences of 440 cells takes 40% of a decode. Here a tile is some tokens of a sequence with all query heads of a
// KV head, against 64 cells at a time. Keys and values are converted once for up to 6 rows, stay in registers, and are
// fetched ahead. Queries and sums are f32 where ggml has f16, so that results are nearer to exact ones than ggml's.

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

namespace {

constexpr int CELLS = GGML_FA_TILE_KV;
constexpr int ROWS = GGML_FA_TILE_Q;
// Measured: 8 to 32 are much the same, 4 is slower.
constexpr int CELLS_AHEAD = 16;

struct Tile {
    int64_t stream;
    int64_t kv_head;
    int64_t first_token;
    int64_t num_tokens;
};

// The vectors of one KV head, one for each cell.
struct Cells {
    const char * data;
    size_t stride; // bytes
    int64_t width; // numbers in each

    // Have the lines of 4 of them loaded.
    void prefetch(int64_t cell) const {
        for (int64_t i = cell; i < cell + 4; ++i) {
            for (int64_t byte = 0; byte < width * 2; byte += 64) {
                _mm_prefetch(data + i * stride + byte, _MM_HINT_T0);
            }
        }
    }
};

inline __m256 load_f16(const void * from) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i *>(from)));
}

// The sum of each of four vectors.
inline __m128 sums(const __m256 (&v)[4]) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// scores[r][c] = queries[r] . keys[c] of R rows and n cells, a multiple of 4.
template <int R, bool FIRST>
void score(float * scores, const float * queries, const Cells & keys, const Cells & values, int n) {
    for (int c = 0; c < n; c += 4) {
        if (FIRST) {
            keys.prefetch(c + CELLS_AHEAD);
            values.prefetch(c);
        }
        const char * key = keys.data + c * keys.stride;
        __m256 acc[R][4] = {};
        for (int64_t d = 0; d < keys.width; d += 8) {
            __m256 k[4];
            for (int j = 0; j < 4; ++j) {
                k[j] = load_f16(key + j * keys.stride + 2 * d);
            }
            for (int r = 0; r < R; ++r) {
                const __m256 q = _mm256_loadu_ps(queries + r * keys.width + d);
                for (int j = 0; j < 4; ++j) {
                    acc[r][j] = _mm256_fmadd_ps(q, k[j], acc[r][j]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            _mm_storeu_ps(scores + r * CELLS + c, sums(acc[r]));
        }
    }
}

template <bool FIRST>
void score_up_to_3(float * scores, const float * queries, int rows, const Cells & keys, const Cells & values, int n) {
    switch (rows) {
        case 1: score<1, FIRST>(scores, queries, keys, values, n); break;
        case 2: score<2, FIRST>(scores, queries, keys, values, n); break;
        default: score<3, FIRST>(scores, queries, keys, values, n); break;
    }
}

void score_rows(float * scores, const float * queries, int rows, const Cells & keys, const Cells & values, int n) {
    score_up_to_3<true>(scores, queries, rows, keys, values, n);
    for (int r = 3; r < rows; r += 3) {
        score_up_to_3<false>(scores + r * CELLS, queries + r * keys.width, rows - r, keys, values, n);
    }
}

// out[r] += weights[r] * values of R rows and n cells.
template <int R>
void accumulate(float * out, const float * weights, const Cells & values, int n) {
    for (int64_t d = 0; d < values.width; d += 16) {
        __m256 acc[R][2];
        for (int r = 0; r < R; ++r) {
            acc[r][0] = _mm256_loadu_ps(out + r * values.width + d);
            acc[r][1] = _mm256_loadu_ps(out + r * values.width + d + 8);
        }
        const char * value = values.data + 2 * d;
        for (int c = 0; c < n; ++c, value += values.stride) {
            const __m256 low = load_f16(value);
            const __m256 high = load_f16(value + 16);
            for (int r = 0; r < R; ++r) {
                const __m256 weight = _mm256_set1_ps(weights[r * CELLS + c]);
                acc[r][0] = _mm256_fmadd_ps(weight, low, acc[r][0]);
                acc[r][1] = _mm256_fmadd_ps(weight, high, acc[r][1]);
            }
        }
        for (int r = 0; r < R; ++r) {
            _mm256_storeu_ps(out + r * values.width + d, acc[r][0]);
            _mm256_storeu_ps(out + r * values.width + d + 8, acc[r][1]);
        }
    }
}

void accumulate_rows(float * out, const float * weights, int rows, const Cells & values, int n) {
    for (; rows >= 6; rows -= 6, out += 6 * values.width, weights += 6 * CELLS) {
        accumulate<6>(out, weights, values, n);
    }
    switch (rows) {
        case 1: accumulate<1>(out, weights, values, n); break;
        case 2: accumulate<2>(out, weights, values, n); break;
        case 3: accumulate<3>(out, weights, values, n); break;
        case 4: accumulate<4>(out, weights, values, n); break;
        case 5: accumulate<5>(out, weights, values, n); break;
    }
}

// How far the cells that a token sees reach among the next n of its mask, in eights (n is a multiple of 8).
int num_visible(const ggml_fp16_t * mask, int n) {
    const __m128i hidden = _mm_set1_epi16(static_cast<short>(0xFC00)); // -inf
    for (int c = n - 8; c >= 0; c -= 8) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i *>(mask + c));
        if (_mm_movemask_epi8(_mm_cmpeq_epi16(bits, hidden)) != 0xFFFF) {
            return c + 8;
        }
    }
    return 0;
}

// Add the mask to a row of scores; the highest of them. n is a multiple of 8.
float add_mask(float * scores, const ggml_fp16_t * mask, int n) {
    __m256 highest = _mm256_set1_ps(-INFINITY);
    for (int c = 0; c < n; c += 8) {
        const __m256 masked = _mm256_add_ps(_mm256_loadu_ps(scores + c), load_f16(mask + c));
        _mm256_storeu_ps(scores + c, masked);
        highest = _mm256_max_ps(highest, masked);
    }
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(highest), _mm256_extractf128_ps(highest, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// The online softmax of FlashAttention (https://arxiv.org/abs/2205.14135), of all rows of a tile. A row is a query head
// of a token; those of a token follow each other.
void attend(const ggml_compute_params * params, ggml_tensor * dst, const Tile & tile, float scale) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    const int64_t width_k = k->ne[0];
    const int64_t width_v = v->ne[0];
    const int64_t group = q->ne[2] / k->ne[2];
    const int rows = static_cast<int>(tile.num_tokens * group);

    // As much as ggml_graph_plan() sets aside for each thread, of which a part is used.
    const int64_t scratch =
        ROWS * (width_k + width_v) + 2 * ROWS * CELLS + CELLS * (width_k + width_v) + CACHE_LINE_SIZE_F32;
    float * queries = static_cast<float *>(params->wdata) + params->ith * scratch;
    float * scores = queries + ROWS * width_k;
    float * out = scores + ROWS * CELLS;
    float sum[ROWS];
    float max[ROWS];

    const auto row_at = [&](const ggml_tensor * t, int r, int head_dim, int token_dim) {
        return reinterpret_cast<float *>(static_cast<char *>(t->data) + tile.stream * t->nb[3] +
            (tile.kv_head * group + r % group) * t->nb[head_dim] + (tile.first_token + r / group) * t->nb[token_dim]);
    };
    const auto mask_at = [&](int64_t token, int64_t cell) {
        return reinterpret_cast<const ggml_fp16_t *>(static_cast<const char *>(mask->data) +
            tile.stream % mask->ne[3] * mask->nb[3] + (tile.first_token + token) * mask->nb[1]) + cell;
    };
    const auto cells_at = [&](const ggml_tensor * t, int64_t cell) {
        const char * data = static_cast<const char *>(t->data);
        return Cells{data + tile.stream * t->nb[3] + tile.kv_head * t->nb[2] + cell * t->nb[1], t->nb[1], t->ne[0]};
    };

    for (int r = 0; r < rows; ++r) {
        const float * query = row_at(q, r, 2, 1);
        for (int64_t d = 0; d < width_k; ++d) {
            queries[r * width_k + d] = scale * query[d];
        }
        sum[r] = 0.0f;
        max[r] = -INFINITY;
    }
    memset(out, 0, rows * width_v * sizeof(float));

    for (int64_t cell = 0; cell < k->ne[1]; cell += CELLS) {
        const int rest = static_cast<int>(std::min<int64_t>(CELLS, k->ne[1] - cell));
        int n = 0;
        for (int64_t token = 0; token < tile.num_tokens && n < rest; ++token) {
            n = std::max(n, num_visible(mask_at(token, cell), rest));
        }
        if (n == 0) {
            continue;
        }
        const Cells values = cells_at(v, cell);
        score_rows(scores, queries, rows, cells_at(k, cell), values, n);
        for (int r = 0; r < rows; ++r) {
            float * row = scores + r * CELLS;
            const float highest = add_mask(row, mask_at(r / group, cell), n);
            if (highest == -INFINITY) {
                memset(row, 0, n * sizeof(float));
                continue;
            }
            if (highest > max[r]) {
                const float factor = expf(max[r] - highest);
                ggml_vec_scale_f32(width_v, out + r * width_v, factor);
                sum[r] *= factor;
                max[r] = highest;
            }
            sum[r] += ggml_vec_soft_max_f32(n, row, row, max[r]);
        }
        accumulate_rows(out, scores, rows, values, n);
    }

    for (int r = 0; r < rows; ++r) {
        float * result = row_at(dst, r, 1, 2);
        const float factor = sum[r] == 0.0f ? 0.0f : 1.0f / sum[r];
        for (int64_t d = 0; d < width_v; ++d) {
            result[d] = factor * out[r * width_v + d];
        }
    }
}

// Whether it was done here. All threads come to the same answer.
bool attention(const ggml_compute_params * params, ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    const ggml_tensor * sinks = dst->src[4];
    float scale, max_bias, softcap;
    memcpy(&scale, dst->op_params + 0, sizeof(float));
    memcpy(&max_bias, dst->op_params + 1, sizeof(float));
    memcpy(&softcap, dst->op_params + 2, sizeof(float));

    const bool plain = !params->use_ref && max_bias == 0.0f && softcap == 0.0f && !sinks && mask && mask->ne[2] == 1;
    const bool types = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16;
    const bool shapes = q->ne[2] / k->ne[2] <= ROWS && k->ne[0] % 8 == 0 && v->ne[0] % 16 == 0 && k->ne[1] % 8 == 0 &&
        k->ne[2] == v->ne[2] && k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3];
    if (!plain || !types || !shapes) {
        return false;
    }
    const int64_t most = ROWS / (q->ne[2] / k->ne[2]); // tokens of a tile
    const int64_t tiles_of_head = (q->ne[1] + most - 1) / most;
    const int64_t tokens = (q->ne[1] + tiles_of_head - 1) / tiles_of_head;
    const int64_t num_tiles = q->ne[3] * k->ne[2] * tiles_of_head;
    if (num_tiles < params->nth) {
        return false; // a token or so of one sequence, whose cells ggml divides among the threads
    }
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t i = params->ith; i < num_tiles; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t head = i / tiles_of_head; // of all streams
        const int64_t first = i % tiles_of_head * tokens;
        // Rounding up can leave nothing for the last.
        if (first < q->ne[1]) {
            const int64_t num_tokens = std::min(tokens, q->ne[1] - first);
            attend(params, dst, {head / k->ne[2], head % k->ne[2], first, num_tokens}, scale);
        }
    }
    return true;
}

} // namespace

void ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    if (!attention(params, dst)) {
        ggml_compute_forward_flash_attn_ext_stock(params, dst);
    }
}

#else

void ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    ggml_compute_forward_flash_attn_ext_stock(params, dst);
}

#endif

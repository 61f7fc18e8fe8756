// Flash attention over an f16 KV cache for x86-64 with AVX2 or AVX-512: what scripts/llama_build.cmake adds to ggml's
// CPU backend.
//
// It is put at the end of ggml-cpu/ops.cpp, whose own ggml_compute_forward_flash_attn_ext() it stands in for; that one
// is renamed, and still does what is_handled() leaves it. ggml's way for fewer than 64 tokens of a sequence (a decode,
// a short prompt, what follows a shared prefix) calls a function or two for each query head, token and cell, and with
// 32 sequences of 440 cells takes 40% of a decode. Here a tile is some tokens of a sequence with all query heads of
// some KV heads, against 64 cells at a time. Keys and values are converted once for a few rows, stay in registers, and
// are fetched ahead. Queries and sums are f32 where ggml has f16, so that results are nearer to exact ones than ggml's.

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include "llama_attention.h"

namespace {

// Cells of a tile that are worth a part of their own.
constexpr int CELLS_OF_PART = 128;
// Numbers of a cell's keys and values in a tile: what with twice 64 cells leaves room in an L2 cache of 1 MB.
constexpr int NUMBERS_OF_CELL = 2048;

// What there is to do. A row is a query head of a token. A tile's rows are those of some tokens of a sequence and of
// some KV heads, with all their query heads unless these are more than ROWS. Rows of a KV head follow each other, and
// among them those of a token. A tile's cells are cut into parts, which threads take one by one.
struct Work {
    ggml_tensor * dst;
    const ggml_tensor * q;
    const ggml_tensor * k;
    const ggml_tensor * v;
    const ggml_tensor * mask;
    const float * sinks; // one for each query head, or null
    float scale;
    float softcap;
    float max_bias;
    int64_t group; // query heads of a KV head
    // Of a tile, at most: query heads of each KV head, KV heads, tokens. And how many tiles these make.
    int64_t heads, kv_heads, tokens;
    int64_t tiles_by_heads, tiles_by_kv_heads, tiles_by_tokens;
    int64_t num_tiles;
    int64_t num_parts; // of each tile
    int num_threads;
    float * memory;
    int64_t memory_of_thread; // numbers
};

struct Tile {
    int64_t stream;
    int64_t first_kv_head;
    int64_t num_kv_heads;
    int64_t first_head; // of the first KV head's
    int64_t num_heads; // of each KV head's
    int64_t first_token;
    int64_t num_tokens;

    int rows_of_kv_head() const { return static_cast<int>(num_heads * num_tokens); }
    int rows() const { return static_cast<int>(num_kv_heads) * rows_of_kv_head(); }
};

// The sum of a row's weights, and its highest score.
struct Softmax {
    float sum;
    float max;
};

// A tile's rows while they are worked on. Scores are of one KV head at a time.
struct Rows {
    float * queries; // scaled
    float * scores;
    float * out; // sums of weighted values
    Softmax softmax[ROWS];
    float slopes[ROWS];
};

constexpr int64_t num_parts_of(int64_t n, int64_t most) {
    return (n + most - 1) / most;
}

// It is empty where rounding up has left nothing for the last.
Tile tile_at(const Work & work, int64_t i) {
    const auto some = [](int64_t all, int64_t first, int64_t most) {
        return std::max<int64_t>(0, std::min(most, all - first));
    };
    Tile tile;
    tile.first_token = i % work.tiles_by_tokens * work.tokens;
    tile.num_tokens = some(work.q->ne[1], tile.first_token, work.tokens);
    i /= work.tiles_by_tokens;
    const int64_t first_of_group = i % work.tiles_by_heads * work.heads;
    tile.num_heads = some(work.group, first_of_group, work.heads);
    i /= work.tiles_by_heads;
    tile.first_kv_head = i % work.tiles_by_kv_heads * work.kv_heads;
    tile.num_kv_heads = some(work.k->ne[2], tile.first_kv_head, work.kv_heads);
    tile.first_head = tile.first_kv_head * work.group + first_of_group;
    tile.stream = i / work.tiles_by_kv_heads;
    return tile;
}

int64_t head_of(const Work & work, const Tile & tile, int row) {
    return tile.first_head + row / tile.rows_of_kv_head() * work.group + row % tile.num_heads;
}

int64_t token_of(const Tile & tile, int row) {
    return tile.first_token + row % tile.rows_of_kv_head() / tile.num_heads;
}

// ALiBi's factor of the mask (https://arxiv.org/abs/2108.12409).
float slope_of(const Work & work, int64_t head) {
    if (work.max_bias == 0.0f) {
        return 1.0f;
    }
    int64_t power = 1;
    while (power * 2 <= work.q->ne[2]) {
        power *= 2;
    }
    const bool is_regular = head < power;
    const float step = work.max_bias / static_cast<float>(is_regular ? power : 2 * power);
    return exp2f(-step * static_cast<float>(is_regular ? head + 1 : 2 * (head - power) + 1));
}

const ggml_fp16_t * mask_at(const Work & work, const Tile & tile, int64_t token, int64_t cell) {
    const ggml_tensor * mask = work.mask;
    const char * data = static_cast<const char *>(mask->data);
    return reinterpret_cast<const ggml_fp16_t *>(
        data + tile.stream % mask->ne[3] * mask->nb[3] + token * mask->nb[1]) + cell;
}

Cells cells_at(const ggml_tensor * t, const Tile & tile, int64_t kv_head, int64_t cell) {
    const char * data = static_cast<const char *>(t->data) + tile.stream * t->nb[3];
    return {data + (tile.first_kv_head + kv_head) * t->nb[2] + cell * t->nb[1], t->nb[1], t->ne[0]};
}

void begin_rows(const Work & work, const Tile & tile, Rows & rows) {
    const int64_t width = work.k->ne[0];
    for (int r = 0; r < tile.rows(); ++r) {
        const int64_t head = head_of(work, tile, r);
        const char * data = static_cast<const char *>(work.q->data);
        const float * query = reinterpret_cast<const float *>(
            data + tile.stream * work.q->nb[3] + head * work.q->nb[2] + token_of(tile, r) * work.q->nb[1]);
        for (int64_t d = 0; d < width; ++d) {
            rows.queries[r * width + d] = work.scale * query[d];
        }
        rows.softmax[r] = {0.0f, -INFINITY};
        rows.slopes[r] = slope_of(work, head);
    }
    memset(rows.out, 0, tile.rows() * work.v->ne[0] * sizeof(float));
}

// The online softmax of FlashAttention (https://arxiv.org/abs/2205.14135): a KV head's rows go on by n cells.
void go_on(const Work & work, const Tile & tile, Rows & rows, Ahead & ahead, int64_t kv_head, int64_t cell, int n) {
    const int some = tile.rows_of_kv_head();
    const int first = static_cast<int>(kv_head) * some;
    const Cells values = cells_at(work.v, tile, kv_head, cell);
    const float * queries = rows.queries + first * work.k->ne[0];
    float * out = rows.out + first * values.width;
    score_rows(rows.scores, queries, some, cells_at(work.k, tile, kv_head, cell), ahead, n);
    for (int i = 0; i < some; ++i) {
        float * scores = rows.scores + i * CELLS;
        Softmax & softmax = rows.softmax[first + i];
        const ggml_fp16_t * mask = mask_at(work, tile, token_of(tile, first + i), cell);
        const float highest = add_mask(scores, mask, rows.slopes[first + i], work.softcap, n);
        if (highest == -INFINITY) {
            memset(scores, 0, n * sizeof(float));
            continue;
        }
        if (highest > softmax.max) {
            const float factor = expf(softmax.max - highest);
            ggml_vec_scale_f32(values.width, out + i * values.width, factor);
            softmax = {softmax.sum * factor, highest};
        }
        softmax.sum += exponentiate(scores, softmax.max, n);
    }
    accumulate_rows(out, rows.scores, some, values, n);
}

void write_row(const Work & work, const Tile & tile, int row, Softmax softmax, const float * out) {
    const int64_t head = head_of(work, tile, row);
    float factor = 1.0f;
    if (work.sinks) {
        const float max = std::max(work.sinks[head], softmax.max);
        factor = expf(softmax.max - max);
        softmax.sum = softmax.sum * factor + expf(work.sinks[head] - max);
    }
    factor = softmax.sum == 0.0f ? 0.0f : factor / softmax.sum;
    char * data = static_cast<char *>(work.dst->data);
    float * result = reinterpret_cast<float *>(
        data + tile.stream * work.dst->nb[3] + token_of(tile, row) * work.dst->nb[2] + head * work.dst->nb[1]);
    for (int64_t d = 0; d < work.v->ne[0]; ++d) {
        result[d] = factor * out[d];
    }
}

// Where a part leaves what it came to, for join(): the Softmax of each row, then their sums. It is memory that ggml's
// way has for masks, keys and values as f32.
float * left_at(const Work & work, int64_t item) {
    const int64_t widths = work.k->ne[0] + work.v->ne[0];
    const int64_t numbers = work.kv_heads * work.heads * work.tokens * (work.v->ne[0] + 2);
    return work.memory + item % work.num_threads * work.memory_of_thread + ROWS * (widths + CELLS) +
        item / work.num_threads * numbers;
}

// A part of a tile.
void attend(const Work & work, int64_t item, int thread) {
    const Tile tile = tile_at(work, item / work.num_parts);
    const int64_t part = item % work.num_parts;
    if (tile.rows() == 0) {
        return;
    }
    int64_t first = work.k->ne[1];
    int64_t end = 0;
    for (int64_t token = tile.first_token; token < tile.first_token + tile.num_tokens; ++token) {
        first = first_visible(mask_at(work, tile, token, 0), first);
        end += end_of_visible(mask_at(work, tile, token, end), work.k->ne[1] - end);
    }
    const int64_t eights = std::max<int64_t>(0, end - first) / 8;
    end = first + eights * (part + 1) / work.num_parts * 8;
    first += eights * part / work.num_parts * 8;
    Ahead ahead = {cells_at(work.k, tile, 0, 0), cells_at(work.v, tile, 0, 0), work.k->nb[2], work.v->nb[2],
        tile.num_kv_heads, first, end};
    ahead.fetch(CELLS); // and stay so far ahead

    Rows rows;
    rows.queries = work.memory + thread * work.memory_of_thread;
    rows.scores = rows.queries + ROWS * work.k->ne[0];
    rows.out = rows.scores + ROWS * CELLS;
    begin_rows(work, tile, rows);
    for (int64_t cell = first; cell < end; cell += CELLS) {
        const int most = static_cast<int>(std::min<int64_t>(CELLS, end - cell));
        int n = 0;
        for (int64_t token = 0; token < tile.num_tokens && n < most; ++token) {
            n += static_cast<int>(end_of_visible(mask_at(work, tile, tile.first_token + token, cell + n), most - n));
        }
        for (int64_t kv_head = 0; kv_head < tile.num_kv_heads && n > 0; ++kv_head) {
            go_on(work, tile, rows, ahead, kv_head, cell, n);
        }
    }

    const int64_t width = work.v->ne[0];
    if (work.num_parts == 1) {
        for (int r = 0; r < tile.rows(); ++r) {
            write_row(work, tile, r, rows.softmax[r], rows.out + r * width);
        }
        return;
    }
    float * left = left_at(work, item);
    memcpy(left, rows.softmax, tile.rows() * sizeof(Softmax));
    memcpy(left + 2 * tile.rows(), rows.out, tile.rows() * width * sizeof(float));
}

// Put the parts of a row of a tile together.
void join_row(const Work & work, int64_t index, int row, float * out) {
    const Tile tile = tile_at(work, index);
    const int64_t width = work.v->ne[0];
    Softmax all = {0.0f, -INFINITY};
    memset(out, 0, width * sizeof(float));
    for (int64_t part = 0; part < work.num_parts; ++part) {
        const float * left = left_at(work, index * work.num_parts + part);
        Softmax softmax;
        memcpy(&softmax, left + 2 * row, sizeof(Softmax));
        if (softmax.sum == 0.0f) {
            continue;
        }
        const float max = std::max(all.max, softmax.max);
        const float before = expf(all.max - max);
        const float now = expf(softmax.max - max);
        const float * values = left + 2 * tile.rows() + row * width;
        for (int64_t d = 0; d < width; ++d) {
            out[d] = before * out[d] + now * values[d];
        }
        all = {before * all.sum + now * softmax.sum, max};
    }
    write_row(work, tile, row, all, out);
}

// Every num_threads'th row.
void join(const Work & work, int thread) {
    int64_t i = 0;
    for (int64_t index = 0; index < work.num_tiles; ++index) {
        const int rows = tile_at(work, index).rows();
        for (int r = 0; r < rows; ++r, ++i) {
            if (i % work.num_threads == thread) {
                join_row(work, index, r, work.memory + thread * work.memory_of_thread);
            }
        }
    }
}

bool is_handled(const ggml_compute_params * params, const ggml_tensor * dst) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    const ggml_tensor * v = dst->src[2];
    const ggml_tensor * mask = dst->src[3];
    const bool types = q->type == GGML_TYPE_F32 && k->type == GGML_TYPE_F16 && v->type == GGML_TYPE_F16;
    const bool shapes = k->ne[0] % 8 == 0 && v->ne[0] % 8 == 0 && k->ne[1] % 8 == 0 && k->ne[2] == v->ne[2] &&
        k->ne[3] == q->ne[3] && v->ne[3] == q->ne[3];
    return !params->use_ref && mask && mask->ne[2] == 1 && types && shapes;
}

// All threads come to the same.
Work plan(const ggml_compute_params * params, ggml_tensor * dst) {
    Work work;
    work.dst = dst;
    work.q = dst->src[0];
    work.k = dst->src[1];
    work.v = dst->src[2];
    work.mask = dst->src[3];
    work.sinks = dst->src[4] ? static_cast<const float *>(dst->src[4]->data) : nullptr;
    memcpy(&work.scale, dst->op_params + 0, sizeof(float));
    memcpy(&work.max_bias, dst->op_params + 1, sizeof(float));
    memcpy(&work.softcap, dst->op_params + 2, sizeof(float));

    const int64_t widths = work.k->ne[0] + work.v->ne[0];
    work.group = work.q->ne[2] / work.k->ne[2];
    work.tiles_by_heads = num_parts_of(work.group, ROWS);
    work.heads = num_parts_of(work.group, work.tiles_by_heads);
    work.tiles_by_tokens = num_parts_of(work.q->ne[1], ROWS / work.heads);
    work.tokens = num_parts_of(work.q->ne[1], work.tiles_by_tokens);
    // As cells have the numbers of all KV heads side by side, to read several heads is to read along. But to divide a
    // few cells among threads takes longer than to have each read its heads.
    const bool has_few_cells = work.k->ne[1] < 4 * CELLS_OF_PART;
    const int64_t tiles_of_one = work.q->ne[3] * work.k->ne[2] * work.tiles_by_heads * work.tiles_by_tokens;
    int64_t most = std::min(ROWS / (work.heads * work.tokens), NUMBERS_OF_CELL / widths);
    if (has_few_cells) {
        most = std::min(most, tiles_of_one / params->nth);
    }
    work.tiles_by_kv_heads = num_parts_of(work.k->ne[2], std::max<int64_t>(1, most));
    work.kv_heads = num_parts_of(work.k->ne[2], work.tiles_by_kv_heads);
    work.num_tiles = work.q->ne[3] * work.tiles_by_kv_heads * work.tiles_by_heads * work.tiles_by_tokens;

    // As much as ggml_graph_plan() sets aside for each thread.
    work.num_threads = params->nth;
    work.memory = static_cast<float *>(params->wdata);
    work.memory_of_thread = (ROWS + CELLS) * widths + 2 * ROWS * CELLS + CACHE_LINE_SIZE_F32;

    // With few tiles, their cells are divided among the threads, as the memory allows. Of many cells there are two
    // parts for each thread, as the last one to end is waited for.
    const int64_t wanted = has_few_cells ? params->nth : 2 * params->nth;
    const int64_t rows = work.kv_heads * work.heads * work.tokens;
    const int64_t parts_of_thread = (ROWS * CELLS + CELLS * widths) / (rows * (work.v->ne[0] + 2));
    const int64_t most_parts = std::min(work.k->ne[1] / CELLS_OF_PART, parts_of_thread * params->nth / work.num_tiles);
    work.num_parts = std::max<int64_t>(1, std::min(num_parts_of(wanted, work.num_tiles), most_parts));
    if (params->nth == 1) {
        work.num_parts = 1;
    }
    return work;
}

void attention(const ggml_compute_params * params, ggml_tensor * dst) {
    const Work work = plan(params, dst);
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    const int64_t num_items = work.num_tiles * work.num_parts;
    for (int64_t i = params->ith; i < num_items; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        attend(work, i, params->ith);
    }
    if (work.num_parts > 1) {
        ggml_barrier(params->threadpool);
        join(work, params->ith);
    }
}

} // namespace

void ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    if (is_handled(params, dst)) {
        attention(params, dst);
    } else {
        ggml_compute_forward_flash_attn_ext_stock(params, dst);
    }
}

#else

void ggml_compute_forward_flash_attn_ext(const ggml_compute_params * params, ggml_tensor * dst) {
    ggml_compute_forward_flash_attn_ext_stock(params, dst);
}

#endif

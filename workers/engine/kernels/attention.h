// Rotary embedding into the paged cache, and attention over its blocks.
#pragma once

#include <vector>

#include "vector.h"

namespace headrace {

// Rows of a step: of each its position and the number of its sequence, whose blocks are a row of `tables`, `width` wide.
struct Step {
  const int64_t *positions, *sequences, *tables;
  int64_t width, rows;
};

// Keys are [block, head, dim, slot], so that the scores of adjacent slots are adjacent lanes of a vector; values
// are [block, head, slot, dim].
struct Cache {
  float *keys, *values;
  int64_t heads, slots, dim;
  float* keys_of(int64_t block, int64_t head) const { return keys + (block * heads + head) * slots * dim; }
  float* values_of(int64_t block, int64_t head) const { return values + (block * heads + head) * slots * dim; }
};

// Number of query heads; norms of queries and keys, [dim] each, or null, and their epsilon; rotary table,
// [positions, dim / 2].
struct HeadForm {
  int64_t heads;
  const float *query_norm, *key_norm;
  float eps;
  const float *cosines, *sines;
};

// Form of a layer's attention: factor on scores; their soft cap, or 0; positions that a row sees, its own included;
// logits of sinks, [heads], which take part in the softmax without a value, or null.
struct Form {
  float scale, cap;
  int64_t window;
  const float* sinks;
};

// Consecutive rows of one sequence, which read the same keys and values; the first row is at `position`.
struct RowTile {
  int64_t row, rows, position;
  const int64_t* table;
};

// Returns the tiles of a step, valid until this thread's next call.
const std::vector<RowTile>& tiles_of(const Step& step, int64_t num_heads, int64_t kv_heads);

// Rotates the queries of row `row` of qkv [rows, (heads + 2 * kv_heads) * dim] that share key-value head `head` into
// `queries` [rows, heads, dim], and writes that head's rotated key and its value to the cache.
void rotate_head(const float* qkv, const HeadForm& form, const Step& step, const Cache& cache, int64_t row,
                 int64_t head, float* queries);

// Computes all queries of a tile's rows that share one key-value head; `out` is like `queries`, [rows, heads, dim].
void attend(RowTile tile, int64_t head, const float* queries, const Cache& cache, int64_t num_heads,
            const Form& form, float* out);

}  // namespace headrace

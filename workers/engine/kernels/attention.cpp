// Attention over the blocks of the paged cache.
//
// A row's result depends only on its query, its position and its sequence's blocks: scores are summed over the
// dimensions in order, and outputs over the positions in order, whatever rows are computed beside it. Weights are
// summed in lanes that begin at the first position that the row sees.
#include "attention.h"

#include <cmath>

namespace headrace {
namespace {

constexpr int64_t kBlocksAhead = 2;  // distance of prefetching

// Computes the scores of M queries for V vectors of slots of one block.
template <int M, int V>
void score(const float* const* queries, const float* keys, int64_t slots, int64_t dim, float* const* scores) {
  Vec sums[M][V] = {};
  for (int64_t d = 0; d < dim; ++d) {
    Vec k[V];
    for (int v = 0; v < V; ++v) k[v] = load(keys + d * slots + v * kLanes);
    for (int m = 0; m < M; ++m) {
      const Vec q = splat(queries[m][d]);
      for (int v = 0; v < V; ++v) sums[m][v] = fma(q, k[v], sums[m][v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(scores[m] + v * kLanes, sums[m][v]);
}

// Computes the scores of a block's last slots, fewer than a vector.
template <int M>
void score_part(const float* const* queries, const float* keys, int64_t slots, int64_t count, int64_t dim,
                float* const* scores) {
  Vec sums[M] = {};
  for (int64_t d = 0; d < dim; ++d) {
    const Vec k = load_part(keys + d * slots, count);
    for (int m = 0; m < M; ++m) sums[m] = fma(splat(queries[m][d]), k, sums[m]);
  }
  for (int m = 0; m < M; ++m) store_part(scores[m], sums[m], count);
}

template <int M>
void score_block(const float* const* queries, const float* keys, int64_t slots, int64_t dim, float* scores,
                 int64_t stride) {
  float* to[M];
  for (int64_t slot = 0; slot < slots;) {
    for (int m = 0; m < M; ++m) to[m] = scores + m * stride + slot;
    const int64_t left = slots - slot;
    if (left >= 2 * kLanes)
      score<M, 2>(queries, keys + slot, slots, dim, to);
    else if (left >= kLanes)
      score<M, 1>(queries, keys + slot, slots, dim, to);
    else
      score_part<M>(queries, keys + slot, slots, left, dim, to);
    slot += left >= 2 * kLanes ? 2 * kLanes : std::min(kLanes, left);
  }
}

// Replaces scores[0 … count) by cap * tanh(scale / cap * score).
void cap_scores(float* scores, int64_t count, float scale, float cap) {
  for (int64_t i = 0; i < count; i += kLanes)
    store_part(scores + i, tanh(load_part(scores + i, count - i) * (scale / cap)) * cap, count - i);
}

// Replaces scores[0 … count) by weights e^(scale * score - largest), and returns their sum, with that of a sink.
float exponentiate(float* scores, int64_t count, float scale, const float* sink) {
  Vec most = splat(scores[0]);
  Sums sums;
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    const Vec s = load(scores + i);
    most = s > most ? s : most;
  }
  float peak = largest(most);
  for (int64_t i = whole; i < count; ++i) peak = scores[i] > peak ? scores[i] : peak;
  if (sink != nullptr) peak = *sink / scale > peak ? *sink / scale : peak;
  int64_t i = 0;
  for (; i + kSumLanes <= count; i += kSumLanes)
    for (int64_t v = 0; v < kSumVecs; ++v) {
      float* at = scores + i + v * kLanes;
      const Vec weight = exp((load(at) - peak) * scale);
      store(at, weight);
      sums.parts[v] += weight;
    }
  for (int64_t v = 0; i < count; i += kLanes, ++v) {
    const int64_t left = count - i;
    Vec weight = exp((load_part(scores + i, left) - peak) * scale);
    for (int64_t lane = left; lane < kLanes; ++lane) weight[lane] = 0;
    store_part(scores + i, weight, left);
    sums.parts[v] += weight;
  }
  return sink == nullptr ? sums.total() : sums.total() + exp(splat(*sink - peak * scale))[0];
}

// Adds the weighted values of `count` slots to the outputs of M queries, for V vectors of dimensions.
template <int M, int V>
void add_values(const float* weights, int64_t stride, const float* values, int64_t count, int64_t dim,
           float* const* out) {
  Vec sums[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) sums[m][v] = load(out[m] + v * kLanes);
  for (int64_t slot = 0; slot < count; ++slot) {
    Vec value[V];
    for (int v = 0; v < V; ++v) value[v] = load(values + slot * dim + v * kLanes);
    for (int m = 0; m < M; ++m) {
      const Vec w = splat(weights[m * stride + slot]);
      for (int v = 0; v < V; ++v) sums[m][v] = fma(w, value[v], sums[m][v]);
    }
  }
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) store(out[m] + v * kLanes, sums[m][v]);
}

template <int M>
void add_values_block(const float* weights, int64_t stride, const float* values, int64_t count, int64_t dim,
                 float* const* out) {
  constexpr int kWide = M <= 3 ? 4 : 2;
  float* to[M];
  int64_t d = 0;
  auto at = [&] {
    for (int m = 0; m < M; ++m) to[m] = out[m] + d;
    return to;
  };
  for (; d + kWide * kLanes <= dim; d += kWide * kLanes)
    add_values<M, kWide>(weights, stride, values + d, count, dim, at());
  for (; d + kLanes <= dim; d += kLanes) add_values<M, 1>(weights, stride, values + d, count, dim, at());
  if (d == dim) return;
  for (int m = 0; m < M; ++m) {
    Vec sums = load_part(out[m] + d, dim - d);
    for (int64_t slot = 0; slot < count; ++slot)
      sums = fma(splat(weights[m * stride + slot]), load_part(values + slot * dim + d, dim - d), sums);
    store_part(out[m] + d, sums, dim - d);
  }
}

// Calls f with a number of queries as a template argument.
template <class F>
void with_count(int64_t m, const F& f) {
  switch (m) {
    case 1: return f.template operator()<1>();
    case 2: return f.template operator()<2>();
    case 3: return f.template operator()<3>();
    case 4: return f.template operator()<4>();
    case 5: return f.template operator()<5>();
    default: return f.template operator()<6>();
  }
}

// Prefetches `count` numbers: the CPU does not prefetch across pages, and blocks may lie anywhere.
void prefetch(const float* p, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i, 0, 2);
}

// Positions begin … end - 1 that a query sees.
typedef Range Seen;

// Adds the weighted values of all blocks to the outputs of `count` queries. Both ends of what they see ascend.
void add_all_values(const RowTile& tile, int64_t head, const Cache& cache, int64_t blocks, const float* all_weights,
                    int64_t count, const Seen* seen, float* const* to) {
  const int64_t slots = cache.slots, dim = cache.dim, stride = blocks * slots;
  for (int64_t b = 0; b < blocks; ++b) {
    const float *weights = all_weights + b * slots, *values = cache.values_of(tile.table[b], head);
    if (b + kBlocksAhead < blocks)
      prefetch(cache.values_of(tile.table[b + kBlocksAhead], head), slots * dim);
    else if (head + 1 < cache.heads)  // the next item, most often
      prefetch(cache.keys_of(tile.table[std::min(b + kBlocksAhead - blocks, blocks - 1)], head + 1), slots * dim);
    auto in_block = [&](int64_t position) { return std::clamp<int64_t>(position - b * slots, 0, slots); };
    auto add_own = [&](int64_t m, int64_t begin, int64_t end) {
      if (end > begin)
        add_values_block<1>(weights + m * stride + begin, stride, values + begin * dim, end - begin, dim, to + m);
    };
    // slots that all queries see, between those that only the first or only the last ones see
    const int64_t begin = in_block(seen[count - 1].begin), end = std::max(begin, in_block(seen[0].end));
    for (int64_t m = 0; m < count; ++m) add_own(m, in_block(seen[m].begin), std::min(begin, in_block(seen[m].end)));
    if (end > begin)
      with_count(count, [&]<int M>() {
        add_values_block<M>(weights + begin, stride, values + begin * dim, end - begin, dim, to);
      });
    for (int64_t m = 0; m < count; ++m) add_own(m, std::max(end, in_block(seen[m].begin)), in_block(seen[m].end));
  }
}

}  // namespace

const std::vector<RowTile>& tiles_of(const Step& step, int64_t num_heads, int64_t kv_heads) {
  static thread_local std::vector<RowTile> tiles;
  const int64_t most = std::max<int64_t>(1, 2 * kTile / (num_heads / kv_heads));
  const int64_t *positions = step.positions, *sequences = step.sequences;
  tiles.clear();
  for (int64_t row = 0; row < step.rows; ++row) {
    if (!tiles.empty()) {
      RowTile& last = tiles.back();
      const bool next = sequences[row] == sequences[row - 1] && positions[row] == positions[row - 1] + 1;
      if (next && last.rows < most) {
        ++last.rows;
        continue;
      }
    }
    tiles.push_back({row, 1, positions[row], step.tables + sequences[row] * step.width});
  }
  return tiles;
}

// Computes at most kTile queries at a time.
void attend(RowTile tile, int64_t head, const float* queries, const Cache& cache, int64_t num_heads,
            const Form& form, float* out) {
  static thread_local std::vector<float> room;
  const int64_t group = num_heads / cache.heads, dim = cache.dim, slots = cache.slots;
  const int64_t skipped = std::max<int64_t>(0, tile.position + 1 - form.window) / slots;  // blocks before the window
  tile.table += skipped;
  tile.position -= skipped * slots;
  const int64_t length = tile.position + tile.rows;
  const int64_t blocks = count_tiles(length, slots), stride = blocks * slots;
  if (static_cast<int64_t>(room.size()) < kTile * stride) room.resize(kTile * stride);
  for (int64_t b = 0; b < std::min(kBlocksAhead, blocks); ++b)
    prefetch(cache.keys_of(tile.table[b], head), slots * dim);
  const int64_t all = tile.rows * group, chunks = count_tiles(all, kTile);
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Range part = tile_rows(all, chunks, chunk);
    const int64_t count = part.end - part.begin;
    const float *q[kTile], *sinks[kTile];
    float* to[kTile];
    Seen seen[kTile];
    float sums[kTile];
    for (int64_t m = 0; m < count; ++m) {
      const int64_t row = (part.begin + m) / group, query = head * group + (part.begin + m) % group;
      const int64_t offset = ((tile.row + row) * num_heads + query) * dim, end = tile.position + row + 1;
      q[m] = queries + offset;
      to[m] = out + offset;
      seen[m] = {std::max<int64_t>(0, end - form.window), end};
      sinks[m] = form.sinks == nullptr ? nullptr : form.sinks + query;
      std::fill(to[m], to[m] + dim, 0.0f);
    }
    with_count(count, [&]<int M>() {
      for (int64_t b = 0; b < blocks; ++b) {
        const int64_t next = b + kBlocksAhead;  // the first values follow the last keys
        if (next < blocks)
          prefetch(cache.keys_of(tile.table[next], head), slots * dim);
        else if (next - blocks < blocks)
          prefetch(cache.values_of(tile.table[next - blocks], head), slots * dim);
        score_block<M>(q, cache.keys_of(tile.table[b], head), slots, dim, room.data() + b * slots, stride);
      }
    });
    for (int64_t m = 0; m < count; ++m) {
      float* scores = room.data() + m * stride + seen[m].begin;
      const int64_t positions = seen[m].end - seen[m].begin;
      if (form.cap != 0) cap_scores(scores, positions, form.scale, form.cap);
      sums[m] = exponentiate(scores, positions, form.cap != 0 ? 1.0f : form.scale, sinks[m]);
    }
    add_all_values(tile, head, cache, blocks, room.data(), count, seen, to);
    for (int64_t m = 0; m < count; ++m) {
      const float inverse = 1.0f / sums[m];
      for (int64_t d = 0; d < dim; ++d) to[m][d] *= inverse;
    }
  }
}

extern "C" {

// Attends from queries [rows, heads, dim] to the positions of their sequences up to their own; `out` is alike.
void hr_attention(const float* queries, const Step* step, const Cache* cache, int64_t num_heads, const Form* form,
                  float* out) {
  const std::vector<RowTile>& tiles = tiles_of(*step, num_heads, cache->heads);
  for_each(static_cast<int64_t>(tiles.size()) * cache->heads, 1, [&](int64_t i) {
    attend(tiles[i / cache->heads], i % cache->heads, queries, *cache, num_heads, *form, out);
  });
}

}  // extern "C"
}  // namespace headrace

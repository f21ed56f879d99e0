// Rotary embedding of queries and keys, and writing of keys and values to the paged cache.
#include "attention.h"
#include "rows.h"

namespace headrace {
namespace {

// Rotates x by the angles of its position, pairing dimensions i and i + dim / 2; `stride` is that of `out`.
void rotate(const float* x, const float* cosines, const float* sines, float* out, int64_t dim, int64_t stride) {
  const int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    out[i * stride] = a * cosines[i] - b * sines[i];
    out[(i + half) * stride] = b * cosines[i] + a * sines[i];
  }
}

}  // namespace

void rotate_head(const float* qkv, const HeadForm& form, const Step& step, const Cache& cache, int64_t row,
                 int64_t head, float* queries) {
  static thread_local std::vector<float> normed;
  const int64_t dim = cache.dim, group = form.heads / cache.heads;
  normed.resize(dim);
  const int64_t position = step.positions[row], slot = position % cache.slots;
  const int64_t block = step.tables[step.sequences[row] * step.width + position / cache.slots];
  const float *cosines = form.cosines + position * (dim / 2), *sines = form.sines + position * (dim / 2);
  const float* heads = qkv + row * (form.heads + 2 * cache.heads) * dim;
  const float *key = heads + (form.heads + head) * dim, *value = key + cache.heads * dim;
  auto after_norm = [&](const float* x, const float* weight) -> const float* {
    if (weight == nullptr) return x;
    norm_row(x, weight, normed.data(), dim, form.eps);
    return normed.data();
  };
  for (int64_t query = head * group; query < (head + 1) * group; ++query)
    rotate(after_norm(heads + query * dim, form.query_norm), cosines, sines,
           queries + (row * form.heads + query) * dim, dim, 1);
  rotate(after_norm(key, form.key_norm), cosines, sines, cache.keys_of(block, head) + slot, dim, cache.slots);
  std::memcpy(cache.values_of(block, head) + slot * dim, value, sizeof(float) * dim);
}

extern "C" {

// Rotates all heads of all rows; see rotate_head.
void hr_rope_and_cache(const float* qkv, const HeadForm* form, const Step* step, const Cache* cache,
                       float* queries) {
  for_each(step->rows * cache->heads, 8, [&](int64_t i) {
    rotate_head(qkv, *form, *step, *cache, i / cache->heads, i % cache->heads, queries);
  });
}

}  // extern "C"
}  // namespace headrace

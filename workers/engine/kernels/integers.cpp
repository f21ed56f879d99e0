// Rows of numbers rounded to integers, with a scale for each row.
#include "integers.h"

#include <cmath>

namespace headrace {
namespace {

typedef int16_t NarrowVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

constexpr float kMinMagnitude = 1e-30f;  // rows and weights with smaller values become 0

Vec rounded(Vec x) { return (x + 12582912.0f) - 12582912.0f; }  // half to even, up to 2^22

// Returns the largest magnitude of x, or NaN if a value is not finite.
float magnitude(const float* x, int64_t size) {
  Vec most{}, doubt{};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec v = load_part(x + i, size - i);
    const Vec absolute = v < 0 ? -v : v;
    most = absolute > most ? absolute : most;
    doubt += v - v;
  }
  return largest(most) + sum(doubt);
}

}  // namespace

float quantize_row(const float* x, int16_t* out, int64_t size, float levels) {
  const float most = magnitude(x, size);
  if (!(most >= kMinMagnitude)) {
    std::fill(out, out + size, 0);
    return std::isnan(most) ? most : 0.0f;
  }
  const Vec factor = splat(levels / most);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    *reinterpret_cast<NarrowVec*>(out + i) =
        __builtin_convertvector(__builtin_convertvector(rounded(load(x + i) * factor), IntVec), NarrowVec);
  const Vec last = rounded(load_part(x + i, size - i) * factor);
  for (int64_t j = i; j < size; ++j) out[j] = static_cast<int16_t>(last[j - i]);
  return most / levels;
}

void prepare_integers(const Linear& layer, const Rows& rows, int64_t row) {
  static thread_local std::vector<float> ordered;
  static thread_local std::vector<int16_t> integers;
  const int64_t inputs = layer.inputs, stride = row_stride(layer), groups = row_groups(layer);
  const float* x = rows.floats + row * inputs;
  if (layer.order != nullptr) {
    ordered.resize(inputs);
    for (int64_t i = 0; i < inputs; ++i) ordered[i] = x[layer.order[i]];
    x = ordered.data();
  }
  integers.resize(stride);
  rows.scales[row] = quantize_row(x, integers.data(), inputs, layer.levels);
  std::fill(integers.begin() + inputs, integers.end(), 0);
  store_quads(integers.data(), rows.integers + row * 2 * stride, stride);
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t sum = 0;
    for (int64_t i = 0; i < layer.group; ++i) sum += static_cast<uint32_t>(int32_t{integers[g * layer.group + i]});
    rows.sums[row * groups + g] = sum;
  }
}

}  // namespace headrace

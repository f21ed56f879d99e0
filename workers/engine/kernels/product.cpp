// Product of a linear layer in float32: x [rows, in] times a packed weight, plus bias.
//
// Each number of the result is one chain of multiply-adds over the inputs in order, so its bits depend neither on
// the number of rows nor on the shape of a tile.
#include "linear.h"

namespace headrace {
namespace {

// Multiplies R rows of x by one panel, and prefetches a line of the next one every `pace` steps.
template <int R>
void multiply(const float* x, int64_t inputs, const float* panel, const float* bias, float* out, int64_t outputs,
              int64_t columns, const float* ahead, int64_t pace) {
  Vec sums[R][2] = {};
  for (int64_t k = 0; k < inputs;) {
    __builtin_prefetch(ahead, 0, 2);
    ahead += kPanel;
    for (const int64_t end = std::min(k + pace, inputs); k < end; ++k) {
      const Vec left = load(panel + k * kPanel), right = load(panel + k * kPanel + kLanes);
      for (int r = 0; r < R; ++r) {
        const Vec a = splat(x[r * inputs + k]);
        sums[r][0] = fma(a, left, sums[r][0]);
        sums[r][1] = fma(a, right, sums[r][1]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t count = std::min(kLanes, columns - v * kLanes);
      if (count <= 0) break;
      float* to = out + r * outputs + v * kLanes;
      if (bias != nullptr) sums[r][v] += load_part(bias + v * kLanes, count);
      store_part(to, sums[r][v], count);
    }
}

using Multiply = void (*)(const float*, int64_t, const float*, const float*, float*, int64_t, int64_t, const float*,
                          int64_t);
constexpr Multiply kMultiply[kTile] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>};
constexpr int64_t kLinesAhead = 64;  // with a single tile, the same panel must be prefetched

}  // namespace

void multiply_floats(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out) {
  const int64_t column = panel * kPanel, inputs = layer.inputs, outputs = layer.outputs;
  const int64_t count = block.end - block.begin, tiles = count_tiles(count, kTile);
  const float* weights = static_cast<const float*>(layer.packed) + column * inputs;
  const float* bias = layer.bias == nullptr ? nullptr : layer.bias + column;
  const float* next = weights + (tiles == 1 ? kLinesAhead : inputs) * kPanel;
  for (int64_t t = 0; t < tiles; ++t) {
    const Range tile = tile_rows(count, tiles, t);
    const int64_t row = block.begin + tile.begin;
    kMultiply[tile.end - tile.begin - 1](rows.floats + row * inputs, inputs, weights, bias,
                                         out + row * outputs + column, outputs, outputs - column,
                                         next + inputs * t / tiles * kPanel, tiles);
  }
}

extern "C" {

int64_t hr_panel() { return kPanel; }

// Packs the rows of a weight, [outputs] of [inputs], as [panels, inputs, kPanel], padded with zeros.
void hr_pack(const float* const* weight, float* packed, int64_t outputs, int64_t inputs) {
  for_each(count_tiles(outputs, kPanel), 1, [&](int64_t panel) {
    float* to = packed + panel * inputs * kPanel;
    const int64_t columns = std::min(kPanel, outputs - panel * kPanel);
    for (int64_t k = 0; k < inputs; ++k)
      for (int64_t c = 0; c < kPanel; ++c)
        to[k * kPanel + c] = c < columns ? weight[panel * kPanel + c][k] : 0.0f;
  });
}

}  // extern "C"
}  // namespace headrace

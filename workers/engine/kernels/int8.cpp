// Product of a linear layer with int8 weights, a scale per output, int16 activations, and a scale per row.
//
// Sums of integers are exact, and each row has its own scale, so a row's bits do not depend on its neighbours.
// Activations use as many of their 16 bits as cannot overflow a column's 32-bit sum (`levels`), most often all.
#include "integers.h"
#include "linear.h"

namespace headrace {
namespace {

constexpr float kWeightLevels = 127;

// Columns of one panel.
struct Columns {
  const int8_t* weights;
  const float *scales, *bias;
  int64_t count;
};

// Multiplies R rows of x, [rows, pairs * 2], by a panel; prefetches a line of the next panel for every `pace` pairs.
template <int R>
void multiply(const int16_t* x, const float* row_scales, int64_t pairs, const Columns& panel, float* out,
              int64_t outputs, const int8_t* ahead, int64_t pace) {
  constexpr int kChains = R <= 2 ? 4 / R : 1;  // of sums: with few rows, each addition would wait for the one before
  IntVec sums[kChains][R][2] = {};
  auto add = [&](int64_t k, IntVec(&to)[R][2]) {
    const int8_t* weights = panel.weights + k * 2 * kPanel;
    const ShortVec left = load_pairs(weights), right = load_pairs(weights + kPanel);
    for (int r = 0; r < R; ++r) {
      const ShortVec a = splat_pair(x + (r * pairs + k) * 2);
      to[r][0] = add_pairs(left, a, to[r][0]);
      to[r][1] = add_pairs(right, a, to[r][1]);
    }
  };
  for (int64_t k = 0; k < pairs;) {
    for (int c = 0; c < kChains; ++c, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    const int64_t end = std::min(k + kChains * pace, pairs);
    for (; k + kChains <= end; k += kChains)
      for (int c = 0; c < kChains; ++c) add(k + c, sums[c]);
    for (; k < end; ++k) add(k, sums[0]);
  }
  for (int c = 1; c < kChains; ++c)
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < 2; ++v) sums[0][r][v] += sums[c][r][v];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t first = v * kLanes, count = std::min(kLanes, panel.count - first);
      if (count <= 0) break;
      Vec result = __builtin_convertvector(sums[0][r][v], Vec) *
                   (splat(row_scales[r]) * load_part(panel.scales + first, count));
      if (panel.bias != nullptr) result += load_part(panel.bias + first, count);
      store_part(out + r * outputs + first, result, count);
    }
}

using Multiply = void (*)(const int16_t*, const float*, int64_t, const Columns&, float*, int64_t, const int8_t*,
                          int64_t);
constexpr Multiply kMultiply[kTile] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>, multiply<5>, multiply<6>};
constexpr int64_t kBytesAhead = 4096;

}  // namespace

void prepare_int8(const Linear& layer, const Rows& rows, int64_t row) {
  const int64_t inputs = layer.inputs;
  rows.scales[row] =
      quantize_row(rows.floats + row * inputs, rows.integers + row * row_stride(layer), inputs, layer.levels);
}

void multiply_int8(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out) {
  const int64_t stride = row_stride(layer), bytes = stride * kPanel, column = panel * kPanel;
  const int64_t count = block.end - block.begin, tiles = count_tiles(count, kTile), outputs = layer.outputs;
  const Columns columns{static_cast<const int8_t*>(layer.packed) + panel * bytes, layer.scales + column,
                        layer.bias == nullptr ? nullptr : layer.bias + column, outputs - column};
  const int8_t* next = columns.weights + (tiles == 1 ? kBytesAhead : bytes);
  for (int64_t t = 0; t < tiles; ++t) {
    const Range tile = tile_rows(count, tiles, t);
    const int64_t row = block.begin + tile.begin;
    kMultiply[tile.end - tile.begin - 1](rows.integers + row * stride, rows.scales + row, stride / 2, columns,
                                         out + row * outputs + column, outputs, next + bytes * t / tiles,
                                         tiles * 64 / (2 * kPanel));
  }
}

extern "C" {

// Packs weights [outputs, inputs] as [panels, pairs of inputs, kPanel, 2], padded with zeros; scales are [outputs].
void hr_int8_pack(const float* const* weight, int8_t* packed, float* scales, int64_t outputs, int64_t inputs) {
  const int64_t pairs = count_tiles(inputs, 2);
  for_each(outputs, 1, [&](int64_t column) {
    static thread_local std::vector<int16_t> row;
    row.resize(inputs + 1);
    scales[column] = quantize_row(weight[column], row.data(), inputs, kWeightLevels);
    int8_t* to = packed + column / kPanel * pairs * 2 * kPanel + column % kPanel * 2;
    for (int64_t k = 0; k < 2 * pairs; ++k) to[k / 2 * 2 * kPanel + k % 2] = static_cast<int8_t>(row[k]);
  });
}

}  // extern "C"
}  // namespace headrace

// Products of LoRA adapters in float32, added to the rows of a layer that have one: out += (x down^T) up^T.
//
// Each number of a product is one chain of multiply-adds in order, as in product.cpp, so its bits depend neither on
// the number of rows nor on the shape of a tile. Weights are packed as hr_pack does.
#include "vector.h"

namespace headrace {
namespace {

// Product for some rows: `first` is the place of their numbers among those of all adapters, `narrow` that of their
// results in between, and `start` the first output.
struct Group {
  const float *down, *up;
  int64_t rank, first, count, start, outputs, narrow;
};

constexpr int kRows = 4;  // of a tile, which may lie anywhere in the batch

// Multiplies R rows by one panel.
template <int R>
void multiply(const float* const* x, int64_t inputs, const float* panel, Vec (&sums)[kRows][2]) {
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = Vec{};
  for (int64_t k = 0; k < inputs; ++k) {
    const Vec left = load(panel + k * kPanel), right = load(panel + k * kPanel + kLanes);
    for (int r = 0; r < R; ++r) {
      const Vec a = splat(x[r][k]);
      sums[r][0] = fma(a, left, sums[r][0]);
      sums[r][1] = fma(a, right, sums[r][1]);
    }
  }
}

using Multiply = void (*)(const float* const*, int64_t, const float*, Vec (&)[kRows][2]);
constexpr Multiply kMultiply[kRows] = {multiply<1>, multiply<2>, multiply<3>, multiply<4>};

// Calls store(row, sums) for each row of a group, times one panel; row(i) is the address of row i.
template <class Row, class Store>
void for_each_row(int64_t count, int64_t inputs, const float* panel, const Row& row, const Store& store) {
  Vec sums[kRows][2];
  const float* x[kRows];
  for (int64_t begin = 0; begin < count; begin += kRows) {
    const int64_t rows = std::min<int64_t>(kRows, count - begin);
    for (int64_t r = 0; r < rows; ++r) x[r] = row(begin + r);
    kMultiply[rows - 1](x, inputs, panel, sums);
    for (int64_t r = 0; r < rows; ++r) store(begin + r, sums[r]);
  }
}

constexpr int64_t kMinWork = 1 << 16;  // multiply-adds that make another thread worthwhile

}  // namespace

extern "C" {

// rows: the numbers of the rows of all adapters; narrow: [rows of all groups][stride]. x has `inputs` numbers in a
// row, and out `width`.
void hr_adapt(const float* x, float* out, const Group* groups, int64_t count, const int64_t* rows, float* narrow,
              int64_t stride, int64_t inputs, int64_t width) {
  int64_t all = 0, widest = 0;
  for (int64_t g = 0; g < count; ++g) {
    all += groups[g].count;
    widest = std::max(widest, groups[g].outputs);
  }
  const int64_t tiles = count_tiles(stride, kPanel), panels = count_tiles(widest, kPanel);
  const int64_t work = std::max<int64_t>(1, all / count * kPanel);
  for_each(count * tiles, std::max<int64_t>(1, kMinWork / (work * inputs)), [&](int64_t i) {
    const Group& group = groups[i / tiles];
    const int64_t column = i % tiles * kPanel, left = group.rank - column;
    if (left <= 0) return;
    for_each_row(
        group.count, inputs, group.down + column * inputs,
        [&](int64_t r) { return x + rows[group.first + r] * inputs; },
        [&](int64_t r, Vec(&sums)[2]) {
          float* to = narrow + (group.narrow + r) * stride + column;
          store_part(to, sums[0], std::min(kLanes, left));
          if (left > kLanes) store_part(to + kLanes, sums[1], std::min(kLanes, left - kLanes));
        });
  });
  for_each(count * panels, std::max<int64_t>(1, kMinWork / (work * stride)), [&](int64_t i) {
    const Group& group = groups[i / panels];
    const int64_t column = i % panels * kPanel, left = group.outputs - column;
    if (left <= 0) return;
    for_each_row(
        group.count, group.rank, group.up + column * group.rank,
        [&](int64_t r) { return narrow + (group.narrow + r) * stride; },
        [&](int64_t r, Vec(&sums)[2]) {
          float* to = out + rows[group.first + r] * width + group.start + column;
          for (int64_t v = 0; v < 2; ++v) {
            const int64_t lanes = std::min(kLanes, left - v * kLanes);
            if (lanes <= 0) break;
            store_part(to + v * kLanes, load_part(to + v * kLanes, lanes) + sums[v], lanes);
          }
        });
  });
}

}  // extern "C"
}  // namespace headrace

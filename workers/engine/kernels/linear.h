// Linear layers, and rows of their inputs in the form that the weights' format needs.
#pragma once

#include <vector>

#include "vector.h"

namespace headrace {

enum Format : int64_t { kFloats = 0, kInt8 = 1, kGroups = 2 };

// A linear layer; see quantization/cpp_linear.py, which has the same fields.
struct Linear {
  int64_t format, inputs, outputs;
  const void* packed;
  const float *scales, *bias;  // [outputs]: scales of int8, factors of groups; bias or null
  const int64_t* order;        // of groups: the input of each place, or null
  int64_t group, bits;         // of groups; int8 has one, of all inputs and those that fill the last quad
  int64_t width;               // of groups: bytes of a scale, and of a zero
  float levels;                // of integers: largest one of an activation
};

// Rows of activations; integers of 16 bits (see store_quads), scales, and sums of the integers of each group are null
// with float32 weights.
struct Rows {
  const float* floats;
  int8_t* integers;
  float* scales;
  uint32_t* sums;
  int64_t count;
};

constexpr int64_t kRowBlock = 96;  // rows that stay in the CPU's cache for all panels

// Number of integers of a row, and of its groups.
inline int64_t row_stride(const Linear& layer) {
  return layer.format == kFloats ? 0 : count_tiles(layer.inputs, layer.group) * layer.group;
}
inline int64_t row_groups(const Linear& layer) {
  return layer.format == kFloats ? 0 : count_tiles(layer.inputs, layer.group);
}

// Memory of rows, which grows as needed.
class RowMemory {
 public:
  void reserve(const Linear& layer, int64_t rows) {
    grow(integers_, rows * row_stride(layer) * 2);
    grow(scales_, rows);
    grow(sums_, rows * row_groups(layer));
  }
  Rows rows(const float* floats, int64_t count) {
    return {floats, integers_.data(), scales_.data(), sums_.data(), count};
  }

 private:
  template <class T>
  static void grow(std::vector<T>& memory, int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
  }
  std::vector<int8_t> integers_;
  std::vector<float> scales_;
  std::vector<uint32_t> sums_;
};

// Rounds row number `row` of the inputs.
void prepare_integers(const Linear& layer, const Rows& rows, int64_t row);

// Multiplies the rows of block `block` by panel `panel` of the weights, into out [rows, outputs].
void multiply_floats(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out);
void multiply_int8(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out);
void multiply_groups(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out);

inline void prepare(const Linear& layer, const Rows& rows, int64_t row) {
  if (layer.format != kFloats) prepare_integers(layer, rows, row);
}

// Number of items of a product, each a block of rows and a panel of columns.
inline int64_t count_items(const Linear& layer, int64_t rows) {
  return count_tiles(rows, kRowBlock) * count_tiles(layer.outputs, kPanel);
}

inline void multiply_item(const Linear& layer, const Rows& rows, int64_t item, float* out) {
  constexpr decltype(&multiply_floats) kMultiply[] = {multiply_floats, multiply_int8, multiply_groups};
  const int64_t panels = count_tiles(layer.outputs, kPanel), blocks = count_tiles(rows.count, kRowBlock);
  kMultiply[layer.format](layer, rows, tile_rows(rows.count, blocks, item / panels), item % panels, out);
}

}  // namespace headrace

// Product of a linear layer with int8 weights, a scale per output, int16 activations, and a scale per row.
//
// Sums of integers are exact, and each row has its own scale, so a row's bits do not depend on its neighbours.
// Activations use as many of their 16 bits as cannot overflow a column's 32-bit sum (`levels`), most often all.
#include <atomic>

#include "integers.h"

namespace headrace {
namespace {

constexpr float kWeightLevels = 127;
constexpr uint32_t kOffset = 128;  // of the codes: weight = code - 128

}  // namespace

void multiply_int8(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out) {
  const int64_t stride = row_stride(layer), bytes = stride * kPanel;
  const uint8_t* packed = static_cast<const uint8_t*>(layer.packed) + panel * bytes;
  for_each_tile(block, packed, bytes, [&]<int R>(int64_t row, Ahead ahead) {
    QuadSums sums[R][2];
    add_codes<R, 8>(rows.integers + row * 2 * stride, stride, stride, packed, ahead, sums);
    for (int r = 0; r < R; ++r) {
      const uint32_t shift = kOffset * rows.sums[row + r];
      Vec results[2];
      for (int v = 0; v < 2; ++v) results[v] = __builtin_convertvector((IntVec)(sums[r][v].total() - shift), Vec);
      store_panel(layer, panel, rows.scales[row + r], results, out + (row + r) * layer.outputs);
    }
  });
}

extern "C" {

// Packs weights [outputs, inputs] as [panels, quads of inputs, kPanel, 4], and stores their scales, [outputs], and the
// largest sum of magnitudes of a column. The columns and inputs that fill the last panel and quad stay as they are.
void hr_int8_pack(const float* const* weight, uint8_t* packed, float* scales, int64_t* largest_sum, int64_t outputs,
                  int64_t inputs) {
  const int64_t quads = count_tiles(inputs, 4);
  std::atomic<int64_t> most{0};
  for_each(outputs, 1, [&](int64_t column) {
    static thread_local std::vector<int16_t> row;
    row.resize(inputs);
    scales[column] = quantize_row(weight[column], row.data(), inputs, kWeightLevels);
    uint8_t* to = packed + (column / kPanel * quads * kPanel + column % kPanel) * 4;
    int64_t sum = 0;
    for (int64_t k = 0; k < inputs; ++k) {
      to[k / 4 * 4 * kPanel + k % 4] = static_cast<uint8_t>(row[k] + kOffset);
      sum += std::abs(row[k]);
    }
    for (int64_t seen = most; sum > seen && !most.compare_exchange_weak(seen, sum);) {}
  });
  *largest_sum = most;
}

}  // extern "C"
}  // namespace headrace

// Product of a linear layer whose weights are integers of 4 or 8 bits with a scale and a zero for each group of inputs:
// weight = factor of the output * scale * (integer - zero). Activations are 16-bit integers with a scale for each row.
//
// A group's sum of integers is exact, and the groups of a row are added in order, each product rounded alone, so a
// row's bits depend neither on its neighbours nor on the width of vectors.
#include <vector>

#include "integers.h"

namespace headrace {
namespace {

typedef uint16_t CodeVec __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

constexpr float kLevels = 32767;  // of activations; no sum of a group overflows 32 bits
constexpr int64_t kBytesAhead = 4096;
constexpr int64_t kRowBlock = 96;  // as in product.cpp

// Loads kLanes numbers of 16 bits, in IEEE 754's form.
inline Vec load_halves(const uint16_t* p) {
#if HEADRACE_LANES == 16 && defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif HEADRACE_LANES == 8 && defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  const IntVec bits = __builtin_convertvector(*reinterpret_cast<const HalfVec*>(p), IntVec);
  const Vec magnitude = (Vec)((bits & 0x7fff) << 13) * 0x1p112f;  // the exponents' biases differ by 112
  return (Vec)((IntVec)magnitude | ((bits & 0x8000) << 16));
#endif
}

// Bytes of one group of a panel: scales, zeros, then integers.
inline int64_t group_bytes(int64_t group, int64_t bits) { return 4 * kPanel + group * kPanel * bits / 8; }

// Adds the products of a group's integers and R rows of x, `stride` apart, to sums.
template <int R, int Bits>
inline void add_group(const int16_t* x, int64_t stride, int64_t group, const uint8_t* codes, IntVec (&sums)[R][2]) {
  constexpr int64_t kInputs = 8;  // of one step
  for (int64_t k = 0; k < group; k += kInputs) {
    __builtin_prefetch(codes + kBytesAhead, 0, 2);
    CodeVec packed[2];
    if constexpr (Bits == 4) std::memcpy(packed, codes, sizeof(packed));  // 4 pairs in each 16 bits
    for (int64_t pair = 0; pair < kInputs / 2; ++pair) {
      ShortVec left, right;
      if constexpr (Bits == 4) {
        left = (ShortVec)((packed[0] >> (4 * pair)) & 15);
        right = (ShortVec)((packed[1] >> (4 * pair)) & 15);
      } else {
        const int8_t* at = reinterpret_cast<const int8_t*>(codes) + pair * 2 * kPanel;
        left = load_pairs(at), right = load_pairs(at + kPanel);
      }
      for (int r = 0; r < R; ++r) {
        int32_t both;
        std::memcpy(&both, x + r * stride + k + 2 * pair, sizeof(both));
        const ShortVec a = (ShortVec)(IntVec{} + both);
        sums[r][0] = add_pairs(left, a, sums[r][0]);
        sums[r][1] = add_pairs(right, a, sums[r][1]);
      }
    }
    codes += kInputs * kPanel * Bits / 8;
  }
}

// Rows of activations: integers [rows, groups * group], and of each row its scale and the sums of its groups.
struct Rows {
  const int16_t* integers;
  const float *scales, *sums;
};

// Columns of one panel.
struct Columns {
  const uint8_t* packed;
  const float *factors, *bias;
  int64_t count, groups, group;
};

template <int R, int Bits>
void multiply(const Rows& rows, const Columns& panel, float* out, int64_t outputs) {
  Vec totals[R][2] = {};
  const uint8_t* at = panel.packed;
  const int64_t stride = panel.groups * panel.group;
  for (int64_t g = 0; g < panel.groups; ++g) {
    IntVec sums[R][2] = {};
    add_group<R, Bits>(rows.integers + g * panel.group, stride, panel.group, at + 4 * kPanel, sums);
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(at);
    for (int v = 0; v < 2; ++v) {
      const Vec scale = load_halves(halves + v * kLanes), zero = load_halves(halves + kPanel + v * kLanes);
      for (int r = 0; r < R; ++r) {
        const Vec shift = zero * splat(rows.sums[r * panel.groups + g]);
        totals[r][v] += (__builtin_convertvector(sums[r][v], Vec) - shift) * scale;
      }
    }
    at += group_bytes(panel.group, Bits);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const int64_t first = v * kLanes, count = std::min(kLanes, panel.count - first);
      if (count <= 0) break;
      Vec result = totals[r][v] * (splat(rows.scales[r]) * load_part(panel.factors + first, count));
      if (panel.bias != nullptr) result += load_part(panel.bias + first, count);
      store_part(out + r * outputs + first, result, count);
    }
}

using Multiply = void (*)(const Rows&, const Columns&, float*, int64_t);
constexpr Multiply kMultiply4[kTile] = {multiply<1, 4>, multiply<2, 4>, multiply<3, 4>,
                                        multiply<4, 4>, multiply<5, 4>, multiply<6, 4>};
constexpr Multiply kMultiply8[kTile] = {multiply<1, 8>, multiply<2, 8>, multiply<3, 8>,
                                        multiply<4, 8>, multiply<5, 8>, multiply<6, 8>};

// Rounds a row of x, with its inputs in `order` unless that is null, and sums the integers of each group.
float prepare(const float* x, const int64_t* order, int64_t inputs, int16_t* integers, float* sums, int64_t groups,
              int64_t group) {
  static thread_local std::vector<float> ordered;
  if (order != nullptr) {
    ordered.resize(inputs);
    for (int64_t i = 0; i < inputs; ++i) ordered[i] = x[order[i]];
    x = ordered.data();
  }
  const float scale = quantize_row(x, integers, inputs, kLevels);
  std::fill(integers + inputs, integers + groups * group, 0);
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < group; ++i) sum += integers[g * group + i];
    sums[g] = static_cast<float>(sum);
  }
  return scale;
}

}  // namespace

extern "C" {

// Packs one byte for each weight, [outputs, groups * group], and scales and zeros, [outputs, groups], both in 16 bits,
// as [panels, groups, group_bytes]. Columns beyond `outputs` stay as they are.
void hr_group_pack(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros, uint8_t* packed,
                   int64_t outputs, int64_t groups, int64_t group, int64_t bits) {
  const int64_t bytes = group_bytes(group, bits);
  for_each(count_tiles(outputs, kPanel), 1, [&](int64_t panel) {
    for (int64_t column = panel * kPanel; column < std::min(outputs, (panel + 1) * kPanel); ++column)
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* to = packed + (panel * groups + g) * bytes;
        const int64_t c = column % kPanel;
        reinterpret_cast<uint16_t*>(to)[c] = scales[column * groups + g];
        reinterpret_cast<uint16_t*>(to)[kPanel + c] = zeros[column * groups + g];
        const uint8_t* from = codes + (column * groups + g) * group;
        to += 4 * kPanel;
        for (int64_t k = 0; k < group; ++k) {
          if (bits == 8) {
            to[k / 2 * 2 * kPanel + c * 2 + k % 2] = from[k];
          } else {  // [steps of 8 inputs, columns, 2] of 16 bits, each with a number of 4 pairs
            uint16_t* lane = reinterpret_cast<uint16_t*>(to) + (k / 8 * kPanel + c) * 2 + k % 2;
            *lane |= static_cast<uint16_t>(from[k] << (k % 8 / 2 * 4));
          }
        }
      }
  });
}

// Multiplies x [rows, inputs] by packed weights into out [rows, outputs]. `order` is the input of each place, or null;
// `bias` is [outputs] or null.
void hr_group_product(const float* x, const int64_t* order, const uint8_t* packed, const float* factors,
                      const float* bias, float* out, int64_t rows, int64_t inputs, int64_t outputs, int64_t group,
                      int64_t bits) {
  static thread_local std::vector<int16_t> integers;
  static thread_local std::vector<float> scales, sums;
  const int64_t groups = count_tiles(inputs, group), stride = groups * group;
  integers.resize(rows * stride + 1);
  scales.resize(rows);
  sums.resize(rows * groups);
  int16_t* whole = integers.data();  // thread_local: other threads use the caller's through these pointers
  float *by = scales.data(), *of_groups = sums.data();
  for_each(rows, kMinPerThread / inputs, [&](int64_t row) {
    by[row] = prepare(x + row * inputs, order, inputs, whole + row * stride, of_groups + row * groups, groups, group);
  });
  const int64_t panels = count_tiles(outputs, kPanel), blocks = count_tiles(rows, kRowBlock);
  const Multiply* multiply = bits == 4 ? kMultiply4 : kMultiply8;
  for_each(blocks * panels, 1, [&](int64_t i) {
    const Range block = tile_rows(rows, blocks, i / panels);
    const int64_t panel = i % panels, column = panel * kPanel;
    const int64_t count = block.end - block.begin, tiles = count_tiles(count, kTile);
    const Columns columns{packed + panel * groups * group_bytes(group, bits), factors + column,
                          bias == nullptr ? nullptr : bias + column, outputs - column, groups, group};
    for (int64_t t = 0; t < tiles; ++t) {
      const Range tile = tile_rows(count, tiles, t);
      const int64_t row = block.begin + tile.begin;
      multiply[tile.end - tile.begin - 1]({whole + row * stride, by + row, of_groups + row * groups}, columns,
                                          out + row * outputs + column, outputs);
    }
  });
}

}  // extern "C"
}  // namespace headrace

// Product of a linear layer whose weights are integers of 4 or 8 bits with a scale and a zero for each group of inputs:
// weight = factor of the output * scale * (integer - zero). Activations are 16-bit integers with a scale for each row.
// A scale and a zero are numbers of 16 bits, or of a byte each, which counts sixteenths of a zero.
//
// A group's sum of integers is exact, and the groups of a row are added in order, each product rounded alone, so a
// row's bits depend neither on its neighbours nor on the width of vectors.
#include "integers.h"
#include "linear.h"

namespace headrace {
namespace {

typedef uint16_t CodeVec __attribute__((vector_size(4 * kLanes), aligned(2), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));
typedef uint8_t CountVec __attribute__((vector_size(kLanes), aligned(1), may_alias));

constexpr float kLevels = 32767;  // of activations; no sum of a group overflows 32 bits
constexpr int64_t kBytesAhead = 4096;

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

// Loads kLanes bytes.
inline Vec load_counts(const uint8_t* p) {
#if HEADRACE_LANES == 16 && defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif HEADRACE_LANES == 8 && defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(__builtin_convertvector(*reinterpret_cast<const CountVec*>(p), IntVec), Vec);
#endif
}

// Loads the scales of kLanes columns.
inline Vec load_scales(const uint8_t* p, int64_t width) {
  return width == 1 ? load_counts(p) : load_halves(reinterpret_cast<const uint16_t*>(p));
}
inline Vec load_zeros(const uint8_t* p, int64_t width) {
  return width == 1 ? load_counts(p) * 0.0625f : load_halves(reinterpret_cast<const uint16_t*>(p));
}

// Bytes of one group of a panel: scales, zeros, then integers.
inline int64_t header_bytes(int64_t width) { return 2 * width * kPanel; }
inline int64_t group_bytes(int64_t group, int64_t bits, int64_t width) {
  return header_bytes(width) + group * kPanel * bits / 8;
}

// Loads 16 bits for each of kLanes columns and both inputs of a pair. It is no memcpy, which GCC compiles to a copy on
// the stack in parts, for whose end the load of the whole vector waits.
inline CodeVec load_codes(const uint8_t* p) { return *reinterpret_cast<const CodeVec*>(p); }

constexpr int64_t kInputs = 8;  // of one step of 4 bits
constexpr int kUnpacked = 16;   // bits of integers that are unpacked already
constexpr int kFewRows = kLanes == 16 ? 4 : 2;  // with more, two sums for each number do not fit the registers

// Adds the products of a group's integers and R rows of x, `stride` apart, to sums.
template <int R, int Bits>
inline void add_group(const int16_t* x, int64_t stride, int64_t group, const uint8_t* codes, IntVec (&sums)[R][2]) {
#pragma GCC unroll 1  // GCC would keep the products of several pairs, for which there are no registers
  for (int64_t k = 0; k < group; k += 2, codes += 2 * kPanel * Bits / 8) {
    ShortVec left, right;
    if constexpr (Bits == kUnpacked) {
      left = (ShortVec)load_codes(codes), right = (ShortVec)load_codes(codes + 2 * kPanel);
    } else {
      const int8_t* at = reinterpret_cast<const int8_t*>(codes);
      __builtin_prefetch(at + kBytesAhead, 0, 2);
      left = load_pairs(at), right = load_pairs(at + kPanel);
    }
    for (int r = 0; r < R; ++r) {
      const ShortVec a = splat_pair(x + r * stride + k);
      sums[r][0] = add_pairs(left, a, sums[r][0]);
      sums[r][1] = add_pairs(right, a, sums[r][1]);
    }
  }
}

// The same for 4 bits, without unpacking all of them: odd pairs stay 16 times as large, and have sums of their own,
// which groups of 256 do not overflow.
template <int R>
inline void add_packed_group(const int16_t* x, int64_t stride, int64_t group, const uint8_t* codes,
                             IntVec (&sums)[R][2]) {
  IntVec large[R][2] = {};
  for (int64_t k = 0; k < group; k += kInputs, codes += kInputs * kPanel / 2) {
    __builtin_prefetch(codes + kBytesAhead, 0, 2);
    const CodeVec packed[2] = {load_codes(codes), load_codes(codes + 2 * kPanel)};
    for (int64_t half = 0; half < 2; ++half)
      for (int v = 0; v < 2; ++v) {
        const CodeVec pairs = packed[v] >> (8 * half);
        const ShortVec even = (ShortVec)(pairs & 0x0f), odd = (ShortVec)(pairs & 0xf0);
        for (int r = 0; r < R; ++r) {
          const int16_t* at = x + r * stride + k + 4 * half;
          sums[r][v] = add_pairs(even, splat_pair(at), sums[r][v]);
          large[r][v] = add_pairs(odd, splat_pair(at + 2), large[r][v]);
        }
      }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) sums[r][v] += large[r][v] >> 4;
}

// Columns of one panel.
struct Columns {
  const uint8_t *packed, *unpacked;  // integers of 16 bits, or null
  const float *factors, *bias;
  int64_t count, groups, group, bits, width;
};

template <int R, int Bits>
void multiply(const Rows& rows, const Columns& panel, float* out, int64_t outputs) {
  Vec totals[R][2] = {};
  const int64_t stride = panel.groups * panel.group, width = panel.width;
  const int64_t bytes = group_bytes(panel.group, panel.bits, width);
  for (int64_t g = 0; g < panel.groups; ++g) {
    const uint8_t* at = panel.packed + g * bytes;
    const uint8_t* codes =
        Bits == kUnpacked ? panel.unpacked + g * panel.group * kPanel * 2 : at + header_bytes(width);
    IntVec sums[R][2] = {};
    const int16_t* x = rows.integers + g * panel.group;
    if constexpr (Bits == 4)
      add_packed_group<R>(x, stride, panel.group, codes, sums);
    else
      add_group<R, Bits>(x, stride, panel.group, codes, sums);
    for (int v = 0; v < 2; ++v) {
      const Vec scale = load_scales(at + v * kLanes * width, width);
      const Vec zero = load_zeros(at + (kPanel + v * kLanes) * width, width);
      for (int r = 0; r < R; ++r) {
        const Vec shift = zero * splat(rows.sums[r * panel.groups + g]);
        totals[r][v] += (__builtin_convertvector(sums[r][v], Vec) - shift) * scale;
      }
    }
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
template <int Bits>
constexpr Multiply kMultiply[kTile] = {multiply<1, Bits>, multiply<2, Bits>, multiply<3, Bits>,
                                       multiply<4, Bits>, multiply<5, Bits>, multiply<6, Bits>};
constexpr Multiply kMultiplyFew[] = {multiply<1, 4>, multiply<2, 4>, multiply<3, 4>, multiply<4, 4>};

// Returns a panel's integers of 4 bits as integers of 16 bits in the order of the 8-bit form; valid until this
// thread's next call.
const uint8_t* unpack(const Columns& panel) {
  static thread_local std::vector<uint16_t> memory;
  memory.resize(panel.groups * panel.group * kPanel);
  uint16_t* to = memory.data();
  for (int64_t g = 0; g < panel.groups; ++g) {
    const uint8_t* codes = panel.packed + g * group_bytes(panel.group, 4, panel.width) + header_bytes(panel.width);
    for (int64_t k = 0; k < panel.group; k += kInputs, codes += kInputs * kPanel / 2) {
      const CodeVec packed[2] = {load_codes(codes), load_codes(codes + 2 * kPanel)};
      for (int64_t pair = 0; pair < kInputs / 2; ++pair)
        for (int v = 0; v < 2; ++v, to += 2 * kLanes)
          *reinterpret_cast<CodeVec*>(to) = (packed[v] >> (4 * pair)) & 15;
    }
  }
  return reinterpret_cast<const uint8_t*>(memory.data());
}

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

void prepare_groups(const Linear& layer, const Rows& rows, int64_t row) {
  const int64_t groups = row_groups(layer);
  rows.scales[row] = prepare(rows.floats + row * layer.inputs, layer.order, layer.inputs,
                             rows.integers + row * row_stride(layer), rows.sums + row * groups, groups, layer.group);
}

void multiply_groups(const Linear& layer, const Rows& rows, Range block, int64_t panel, float* out) {
  const int64_t groups = row_groups(layer), column = panel * kPanel, outputs = layer.outputs;
  const int64_t count = block.end - block.begin, tiles = count_tiles(count, kTile);
  const int64_t bytes = groups * group_bytes(layer.group, layer.bits, layer.width);
  Columns columns{static_cast<const uint8_t*>(layer.packed) + panel * bytes,
                  nullptr,
                  layer.scales + column,
                  layer.bias == nullptr ? nullptr : layer.bias + column,
                  outputs - column,
                  groups,
                  layer.group,
                  layer.bits,
                  layer.width};
  const Multiply* multiply = layer.bits == 4 ? kMultiplyFew : kMultiply<8>;
  if (layer.bits == 4 && count > kFewRows) {  // unpacked once for all rows
    columns.unpacked = unpack(columns);
    multiply = kMultiply<kUnpacked>;
  }
  for (int64_t t = 0; t < tiles; ++t) {
    const Range tile = tile_rows(count, tiles, t);
    const int64_t row = block.begin + tile.begin;
    const Rows part{nullptr, rows.integers + row * row_stride(layer), rows.scales + row, rows.sums + row * groups, 0};
    multiply[tile.end - tile.begin - 1](part, columns, out + row * outputs + column, outputs);
  }
}

extern "C" {

// Packs one byte for each weight, [outputs, groups * group], and scales and zeros, [outputs, groups], of `width` bytes
// each, as [panels, groups, group_bytes]. Columns beyond `outputs` stay as they are.
void hr_group_pack(const uint8_t* codes, const uint8_t* scales, const uint8_t* zeros, uint8_t* packed, int64_t outputs,
                   int64_t groups, int64_t group, int64_t bits, int64_t width) {
  const int64_t bytes = group_bytes(group, bits, width);
  for_each(count_tiles(outputs, kPanel), 1, [&](int64_t panel) {
    for (int64_t column = panel * kPanel; column < std::min(outputs, (panel + 1) * kPanel); ++column)
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t* to = packed + (panel * groups + g) * bytes;
        const int64_t c = column % kPanel;
        std::memcpy(to + c * width, scales + (column * groups + g) * width, width);
        std::memcpy(to + (kPanel + c) * width, zeros + (column * groups + g) * width, width);
        const uint8_t* from = codes + (column * groups + g) * group;
        to += header_bytes(width);
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

}  // extern "C"
}  // namespace headrace

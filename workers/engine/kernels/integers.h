// Exact products of weights of at most 8 bits and activations of 16 bits.
//
// Weights are codes without a sign, of four adjacent inputs (a quad) for each column. Sums wrap at 32 bits, so they are
// right if the result fits, whatever happens on the way.
#pragma once

#include "linear.h"

namespace headrace {

typedef uint32_t SumVec __attribute__((vector_size(4 * kLanes)));
typedef int16_t ShortVec __attribute__((vector_size(4 * kLanes)));
typedef uint16_t WordVec __attribute__((vector_size(4 * kLanes)));
typedef uint8_t CodeVec __attribute__((vector_size(4 * kLanes), aligned(1), may_alias));

#if defined(__AVX512VNNI__) && HEADRACE_LANES == 16
// One instruction multiplies quads of bytes: sums of the upper and of the lower bytes of activations are apart.
typedef CodeVec Codes;
struct QuadSums {
  SumVec upper{}, lower{};
  SumVec total() const { return (upper << 8) + lower; }
};
#else
// Pairs of 16 bits are multiplied: those of inputs 0 and 2 of a quad, and of 1 and 3.
struct Codes {
  ShortVec even, odd;
};
struct QuadSums {
  SumVec sum{};
  SumVec total() const { return sum; }
};
#endif

// Returns sums + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1] for each lane i.
inline SumVec add_pairs(ShortVec a, ShortVec b, SumVec sums) {
#if HEADRACE_LANES == 16 && defined(__AVX512BW__)
  return sums + (SumVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif HEADRACE_LANES == 8 && defined(__AVX2__)
  return sums + (SumVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  for (int i = 0; i < kLanes; ++i) sums[i] += int32_t{a[2 * i]} * b[2 * i] + int32_t{a[2 * i + 1]} * b[2 * i + 1];
  return sums;
#endif
}

// Returns quad number `quad` of packed codes: of 8 bits there is one, of 4 bits there are two.
template <int Bits>
inline Codes unpack(CodeVec packed, int quad) {
  const WordVec words = (WordVec)packed >> (quad * Bits);
  constexpr uint16_t kMask = (1 << Bits) - 1;
#if defined(__AVX512VNNI__) && HEADRACE_LANES == 16
  return Bits == 8 ? packed : (CodeVec)(words & static_cast<uint16_t>(kMask << 8 | kMask));
#else
  return {(ShortVec)(words & kMask), (ShortVec)(words >> 8 & kMask)};
#endif
}

// Returns four bytes of activations for every column.
inline SumVec splat_bytes(const int8_t* p) {
  uint32_t bytes;
  std::memcpy(&bytes, p, sizeof(bytes));
  return SumVec{} + bytes;
}

// Adds the products of a quad of a row of activations, in the form of `store_quads`, and of codes of both halves of a
// panel.
inline void add_quad(const int8_t* x, int64_t stride, const Codes (&codes)[2], QuadSums (&sums)[2]) {
  const SumVec first = splat_bytes(x), second = splat_bytes(x + stride);
  for (int v = 0; v < 2; ++v) {
#if defined(__AVX512VNNI__) && HEADRACE_LANES == 16
    sums[v].upper = (SumVec)_mm512_dpbusd_epi32((__m512i)sums[v].upper, (__m512i)codes[v], (__m512i)first);
    sums[v].lower = (SumVec)_mm512_dpbusd_epi32((__m512i)sums[v].lower, (__m512i)codes[v], (__m512i)second);
#else
    sums[v].sum = add_pairs(codes[v].odd, (ShortVec)second, add_pairs(codes[v].even, (ShortVec)first, sums[v].sum));
#endif
  }
}

// Stores `stride` activations, of at most kMaxLevels, as add_quad reads them: `stride` bytes with what it multiplies
// first, and as many with the rest.
inline void store_quads(const int16_t* x, int8_t* out, int64_t stride) {
#if defined(__AVX512VNNI__) && HEADRACE_LANES == 16
  for (int64_t i = 0; i < stride; ++i) {
    out[i] = static_cast<int8_t>((x[i] + 128) >> 8);
    out[stride + i] = static_cast<int8_t>(x[i]);
  }
#else
  int16_t *even = reinterpret_cast<int16_t*>(out), *odd = reinterpret_cast<int16_t*>(out + stride);
  for (int64_t i = 0; i < stride / 2; ++i) even[i] = x[2 * i], odd[i] = x[2 * i + 1];
#endif
}

constexpr int64_t kStepBytes = 4 * kPanel;  // of the codes of a step of add_codes

// Weights that will be needed soon, or null: each call prefetches as many as a step reads.
struct Ahead {
  const uint8_t* at;

  void prefetch() {
    if (at == nullptr) return;
    for (int64_t line = 0; line < kStepBytes; line += 64) __builtin_prefetch(at + line, 0, 2);
    at += kStepBytes;
  }
};

// Adds the products of `inputs` inputs of R rows, each of 2 * stride bytes, and of the codes of a panel.
template <int R, int Bits>
inline void add_codes(const int8_t* x, int64_t stride, int64_t inputs, const uint8_t* codes, Ahead& ahead,
                      QuadSums (&sums)[R][2]) {
  constexpr int kQuads = 8 / Bits;
#pragma GCC unroll 1  // GCC would keep the products of several steps, for which there are no registers
  for (int64_t k = 0; k < inputs; k += 4 * kQuads, codes += kStepBytes) {
    ahead.prefetch();
    const CodeVec left = *reinterpret_cast<const CodeVec*>(codes);
    const CodeVec right = *reinterpret_cast<const CodeVec*>(codes + 4 * kLanes);
    for (int quad = 0; quad < kQuads; ++quad) {
      const Codes both[2] = {unpack<Bits>(left, quad), unpack<Bits>(right, quad)};
      for (int r = 0; r < R; ++r) add_quad(x + r * 2 * stride + k + 4 * quad, stride, both, sums[r]);
    }
  }
}

// Writes the numbers of a row and a panel, times the scales of the row and of the outputs, plus the bias.
inline void store_panel(const Linear& layer, int64_t panel, float row_scale, const Vec (&sums)[2], float* out) {
  const int64_t first = panel * kPanel;
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const int64_t column = first + v * kLanes, count = std::min(kLanes, layer.outputs - column);
    if (count <= 0) break;
    Vec result = sums[v] * (splat(row_scale) * load_part(layer.scales + column, count));
    if (layer.bias != nullptr) result += load_part(layer.bias + column, count);
    store_part(out + column, result, count);
  }
}

// Calls f(tile, first row, weights ahead) for the tiles of a block of rows, each with its number of rows as a template
// argument. The first of several tiles prefetches the next panel; a single one reads as fast as the CPU prefetches.
template <class F>
void for_each_tile(Range block, const uint8_t* packed, int64_t bytes, const F& f) {
  const int64_t count = block.end - block.begin, tiles = count_tiles(count, kTile);
  for (int64_t t = 0; t < tiles; ++t) {
    const Range tile = tile_rows(count, tiles, t);
    const Ahead ahead{tiles > 1 && t == 0 ? packed + bytes : nullptr};
    const int64_t row = block.begin + tile.begin;
    switch (tile.end - tile.begin) {
      case 1: f.template operator()<1>(row, ahead); break;
      case 2: f.template operator()<2>(row, ahead); break;
      case 3: f.template operator()<3>(row, ahead); break;
      case 4: f.template operator()<4>(row, ahead); break;
      case 5: f.template operator()<5>(row, ahead); break;
      default: f.template operator()<6>(row, ahead);
    }
  }
}

// Rounds x to integers of at most `levels`, and returns the scale.
float quantize_row(const float* x, int16_t* out, int64_t size, float levels);

}  // namespace headrace

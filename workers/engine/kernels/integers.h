// Products of 16-bit integers, and rows of activations rounded to such integers with a scale for each row.
#pragma once

#include <cmath>

#include "vector.h"

namespace headrace {

typedef int16_t ShortVec __attribute__((vector_size(4 * kLanes)));
typedef int8_t ByteVec __attribute__((vector_size(2 * kLanes), aligned(1), may_alias));
typedef int16_t NarrowVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

constexpr int64_t kMinPerThread = 8192;  // activations; with fewer, a second thread costs more than it saves
constexpr float kMinMagnitude = 1e-30f;  // rows and weights with smaller values become 0

// Loads the weights of kLanes columns for a pair of inputs, widened to 16 bits.
inline ShortVec load_pairs(const int8_t* p) {
#if HEADRACE_LANES == 8 && defined(__AVX2__)  // GCC compiles the general form to eight instructions
  return (ShortVec)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif HEADRACE_LANES == 16 && defined(__AVX512BW__)
  return (ShortVec)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#endif
  return __builtin_convertvector(*reinterpret_cast<const ByteVec*>(p), ShortVec);
}

// Returns a pair of adjacent inputs for every column.
inline ShortVec splat_pair(const int16_t* p) {
  int32_t pair;
  std::memcpy(&pair, p, sizeof(pair));
  return (ShortVec)(IntVec{} + pair);
}

// Returns sums + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1] for each lane i.
inline IntVec add_pairs(ShortVec a, ShortVec b, IntVec sums) {
#if defined(__AVX512VNNI__) && HEADRACE_LANES == 16
  return (IntVec)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)a, (__m512i)b);
#elif HEADRACE_LANES == 16 && defined(__AVX512BW__)
  return sums + (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif HEADRACE_LANES == 8 && defined(__AVX2__)
  return sums + (IntVec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#else
  for (int i = 0; i < kLanes; ++i) sums[i] += int32_t{a[2 * i]} * b[2 * i] + int32_t{a[2 * i + 1]} * b[2 * i + 1];
  return sums;
#endif
}

inline Vec rounded(Vec x) { return (x + 12582912.0f) - 12582912.0f; }  // half to even, up to 2^22

// Returns the largest magnitude of x, or NaN if a value is not finite.
inline float magnitude(const float* x, int64_t size) {
  Vec most{}, doubt{};
  for (int64_t i = 0; i < size; i += kLanes) {
    const Vec v = load_part(x + i, size - i);
    const Vec absolute = v < 0 ? -v : v;
    most = absolute > most ? absolute : most;
    doubt += v - v;
  }
  return largest(most) + sum(doubt);
}

// Rounds x to integers of at most `levels`, appends a 0 if `size` is odd, and returns the scale.
inline float quantize_row(const float* x, int16_t* out, int64_t size, float levels) {
  const float most = magnitude(x, size);
  const Vec factor = splat(most >= kMinMagnitude ? levels / most : 0.0f);
  if (size % 2) out[size] = 0;
  if (!(most >= kMinMagnitude)) {
    std::fill(out, out + size, 0);
    return std::isnan(most) ? most : 0.0f;
  }
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes)
    *reinterpret_cast<NarrowVec*>(out + i) =
        __builtin_convertvector(__builtin_convertvector(rounded(load(x + i) * factor), IntVec), NarrowVec);
  const Vec last = rounded(load_part(x + i, size - i) * factor);
  for (int64_t j = i; j < size; ++j) out[j] = static_cast<int16_t>(last[j - i]);
  return most / levels;
}

}  // namespace headrace

// Weights of a row of logits, which its softmax and the draw of a token have in common.
#pragma once

#include "vector.h"

namespace headrace {

constexpr int64_t kBlock = 1024;         // numbers of a row that are summed in float
constexpr float kMinExponent = -87.0f;   // lower ones have the weight 0

inline bool any(IntVec mask) {
#if defined(__AVX512F__) && HEADRACE_LANES == 16
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif defined(__AVX2__) && HEADRACE_LANES == 8
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  int32_t found = 0;
  for (int64_t i = 0; i < kLanes; ++i) found |= mask[i];
  return found != 0;
#endif
}

// Adds f(i, count) over a row: the vector of numbers i … i + count - 1, and zeros in its other lanes. A `count` of
// kLanes or more means all.
template <class F>
double sum_over(int64_t size, const F& f) {
  double total = 0.0;
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size);
    Sums sums;
    int64_t i = begin;
    for (; i + kSumLanes <= end; i += kSumLanes)
      for (int64_t v = 0; v < kSumVecs; ++v) sums.parts[v] += f(i + v * kLanes, kLanes);
    for (int64_t v = 0; i < end; i += kLanes, ++v) sums.parts[v] += f(i, end - i);
    total += sums.total();
  }
  return total;
}

// Highest number of a row, and the first place where it is; NaN if the row contains NaN.
struct Peak {
  float value;
  int64_t index;
};
Peak find_peak(const float* x, int64_t size);

// Computes exp((x - highest) / temperature) for a row, and returns the sum.
double weigh(const float* x, int64_t size, float highest, float temperature, float* weights);

}  // namespace headrace

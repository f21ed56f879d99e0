// Softmax and its logarithm over rows, the rotary table, and how a machine rounds.
//
// A sum over a row is in kSumLanes lanes for each kBlock of its numbers, and these are added in double, in order.
#include "probabilities.h"

#include <cmath>

#include "scalar.h"

namespace headrace {
namespace {

constexpr int64_t kMinPerThread = 16384;  // numbers; with fewer, a second thread costs more than it saves

int64_t rows_per_thread(int64_t size) { return std::max<int64_t>(1, kMinPerThread / size); }

}  // namespace

Peak find_peak(const float* x, int64_t size) {
  Peak peak{-std::numeric_limits<float>::infinity(), 0};
  IntVec unordered{};
  for (int64_t begin = 0; begin < size; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, size), whole = begin + (end - begin) / kLanes * kLanes;
    Vec most = splat(-std::numeric_limits<float>::infinity());
    for (int64_t i = begin; i < whole; i += kLanes) {
      const Vec a = load(x + i);
      most = a > most ? a : most;
      unordered |= a != a;
    }
    float highest = largest(most);
    for (int64_t i = whole; i < end; ++i) {
      if (x[i] != x[i]) return {x[i], i};
      highest = x[i] > highest ? x[i] : highest;
    }
    if (highest > peak.value) peak = {highest, begin};
  }
  if (any(unordered)) return {std::numeric_limits<float>::quiet_NaN(), 0};
  while (peak.index < size - 1 && x[peak.index] != peak.value) ++peak.index;
  return peak;
}

double weigh(const float* x, int64_t size, float highest, float temperature, float* weights) {
  const Vec most = splat(highest), divisor = splat(temperature), least = splat(kMinExponent), zero{};
  return sum_over(size, [&](int64_t i, int64_t count) {
    const Vec exponent = (load_part(x + i, count) - most) / divisor;
    store_part(weights + i, exponent < least ? zero : exp(exponent), count);
    return load_part(weights + i, count);
  });
}

extern "C" {

// Returns 1 if a multiply-add is rounded once, which changes bits.
int64_t hr_fuses() {
  const Vec almost = splat(1.0f + 0x1p-12f);
  return fma(almost, almost, splat(-1.0f - 0x1p-11f))[0] != 0.0f;
}

// Computes the softmax of x, [rows, size]; `out` may be `x`.
void hr_softmax(const float* x, float* out, int64_t rows, int64_t size) {
  for_each(rows, rows_per_thread(size), [&](int64_t row) {
    const float* from = x + row * size;
    float* to = out + row * size;
    const float total = static_cast<float>(weigh(from, size, find_peak(from, size).value, 1.0f, to));
    for (int64_t i = 0; i < size; ++i) to[i] /= total;
  });
}

// Computes the logarithm of the softmax of x, [rows, size]; `out` may be `x`.
void hr_log_softmax(const float* x, float* out, int64_t rows, int64_t size) {
  for_each(rows, rows_per_thread(size), [&](int64_t row) {
    const float* from = x + row * size;
    float* to = out + row * size;
    const float highest = find_peak(from, size).value;
    const Vec most = splat(highest), least = splat(kMinExponent), zero{};
    const double total = sum_over(size, [&](int64_t i, int64_t count) {
      float kept[kLanes] = {};
      const Vec exponent = load_part(from + i, count) - most;
      store_part(kept, exponent < least ? zero : exp(exponent), count);
      return load(kept);
    });
    const float shift = static_cast<float>(log(total));
    for (int64_t i = 0; i < size; ++i) to[i] = (from[i] - highest) - shift;
  });
}

// Computes cosines and sines, [length, half] each, of the angles of all positions with these frequencies.
void hr_rotary_table(const float* frequencies, float* cosines, float* sines, int64_t length, int64_t half) {
  for_each(length, 64, [&](int64_t position) {
    for (int64_t i = 0; i < half; ++i) {
      const Angle angle = turn(static_cast<float>(position) * frequencies[i]);
      cosines[position * half + i] = static_cast<float>(angle.cosine);
      sines[position * half + i] = static_cast<float>(angle.sine);
    }
  });
}

}  // extern "C"
}  // namespace headrace

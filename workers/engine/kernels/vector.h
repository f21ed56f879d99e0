// Shared by all kernels: a vector type, exact fused multiply-add, exp, and torch's threads.
//
// GCC's and Clang's vector extensions support every CPU; intrinsics are used only for what the extensions lack.
// -ffast-math is off: NaN stays NaN, and sums keep the order in the source.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace headrace {

#if !defined(HEADRACE_LANES) && defined(__AVX512F__) && defined(__AVX512BW__)
#define HEADRACE_LANES 16
#elif !defined(HEADRACE_LANES)
#define HEADRACE_LANES 8
#endif
constexpr int64_t kLanes = HEADRACE_LANES;
constexpr int64_t kPanel = 2 * kLanes;  // columns of a tile of a product
constexpr int64_t kSumLanes = 32;       // of a sum over a row: the same on every CPU, so that it is rounded alike
constexpr int64_t kSumVecs = kSumLanes / kLanes;
constexpr int kTile = 6;                // rows of a tile: 12 sums and their operands fill 16 registers

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef float LooseVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const LooseVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<LooseVec*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }  // minus, because -0 + 0 is 0

// Loads the first `count` lanes, at most all; the others are 0.
inline Vec load_part(const float* p, int64_t count) {
  if (count >= kLanes) return load(p);
  Vec v{};
  std::memcpy(&v, p, sizeof(float) * count);
  return v;
}
inline void store_part(float* p, Vec v, int64_t count) {
  if (count >= kLanes) return store(p, v);
  std::memcpy(p, &v, sizeof(float) * count);
}

// Returns a * b + c, rounded once if the CPU supports it.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__) && HEADRACE_LANES == 16
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__) && HEADRACE_LANES == 8
  return _mm256_fmadd_ps(a, b, c);
#else
  Vec sum;
  for (int i = 0; i < kLanes; ++i) {
#if defined(__FP_FAST_FMAF)
    sum[i] = __builtin_fmaf(a[i], b[i], c[i]);
#else
    sum[i] = a[i] * b[i] + c[i];
#endif
  }
  return sum;
#endif
}

inline float sum(Vec v) {  // by halves, in a fixed order
  for (int64_t width = kLanes / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}

// Partial sums over a row: number i of the row is added to lane i % kSumLanes.
struct Sums {
  Vec parts[kSumVecs] = {};
  float total() {  // by halves, in the order of one vector of kSumLanes
    for (int64_t width = kSumVecs / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) parts[i] += parts[i + width];
    return sum(parts[0]);
  }
};

inline float largest(Vec v) {
  float most = v[0];
  for (int64_t i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// Returns e^x within 2 units in the last place; below -87 about 1e-38, above 88 about 2e38; NaN stays NaN.
// Range reduction and polynomial of the Cephes library.
inline Vec exp(Vec x) {
  const Vec most = splat(88.3f), least = splat(-87.3f), shift = splat(12582912.0f);
  x = x > most ? most : x;
  x = x < least ? least : x;
  const Vec n = fma(x, splat(1.44269504f), shift) - shift;  // rounded to the nearest integer
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = fma(p, r, splat(c));
  p = fma(p, r * r, r + 1.0f);
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  return p * (Vec)power;  // the bits as a float
}

// Returns tanh(x) within 3 units in the last place; NaN stays NaN. The rational function is Eigen's.
inline Vec tanh(Vec x) {
  const Vec most = splat(7.90531110763549805f);
  x = x > most ? most : x;
  x = x < -most ? -most : x;
  const Vec square = x * x;
  Vec p = splat(-2.76076847742355e-16f), q = splat(1.19825839466702e-06f);
  for (float c : {2.00018790482477e-13f, -8.60467152213735e-11f, 5.12229709037114e-08f, 1.48572235717979e-05f,
                  6.37261928875436e-04f, 4.89352455891786e-03f})
    p = fma(p, square, splat(c));
  for (float c : {1.18534705686654e-04f, 2.26843463243900e-03f, 4.89352518554385e-03f}) q = fma(q, square, splat(c));
  return x * p / q;
}

// Calls f(0) … f(count - 1) on torch's threads. Each thread takes the next item when it has finished one, so
// unequal items and a busy core do not delay the rest. `min_per_thread`: items that make another thread worthwhile.
template <class F>
void for_each(int64_t count, int64_t min_per_thread, const F& f) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), count / std::max<int64_t>(min_per_thread, 1));
  std::atomic<int64_t> next{0};
  auto work = [&](int64_t, int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) f(i);
  };
  if (threads < 2)
    work(0, 1);
  else
    at::parallel_for(0, threads, 1, work);
}

// Rows begin … end - 1.
struct Range {
  int64_t begin, end;
};
// Number of tiles of at most `size` rows.
inline int64_t count_tiles(int64_t rows, int64_t size) { return (rows + size - 1) / size; }
// Rows of tile `i` when `rows` are distributed evenly.
inline Range tile_rows(int64_t rows, int64_t tiles, int64_t i) {
  return {rows * i / tiles, rows * (i + 1) / tiles};
}

}  // namespace headrace

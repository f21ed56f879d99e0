// Draws of tokens from rows of logits; each row is independent of the others.
//
// A token is drawn by an exponential race: the one with the largest weight / E wins, where E is -log(u) of a uniform
// number u that a counter-based generator gives each token (sampling/sampler.py has the same in torch).
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "probabilities.h"
#include "scalar.h"

namespace headrace {
namespace {

typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes)));

// How a row is drawn; `_ROW` in sampling/cpp_rows.py has the same layout. A temperature of 0 takes the most likely
// token, a top_k of 0 keeps all. The key of the draw is made from seed, choice and position, or, if `keyed`, it is
// `seed` itself.
struct Draw {
  double top_p, typical_p;
  int64_t top_k;
  uint64_t seed, choice, position;
  float temperature, min_p;
  int64_t keyed;
};

struct Key {
  uint32_t first, second;
};

// Hashes three numbers with the finalizer of SplitMix64.
Key make_key(const Draw& how) {
  uint64_t state = 0;
  if (how.keyed) state = how.seed;
  else
    for (uint64_t part : {how.seed, how.choice, how.position}) {
      state = (state ^ part) + 0x9E3779B97F4A7C15;
      state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9;
      state = (state ^ state >> 27) * 0x94D049BB133111EB;
      state ^= state >> 31;
    }
  return {static_cast<uint32_t>(state >> 32), static_cast<uint32_t>(state)};
}

inline BitVec lowbias32(BitVec x) {
  x ^= x >> 16;
  x *= 0x7FEB352D;
  x ^= x >> 15;
  x *= 0x846CA68B;
  return x ^ x >> 16;
}

const BitVec kIota = [] {
  BitVec ids{};
  for (int64_t i = 0; i < kLanes; ++i) ids[i] = static_cast<uint32_t>(i);
  return ids;
}();

// Returns uniform numbers between 0 and 1, without either, for the tokens from `first` on.
inline Vec uniforms(int64_t first, Key key) {
  const BitVec bits = lowbias32(lowbias32((kIota + static_cast<uint32_t>(first)) ^ key.first) + key.second) >> 9;
  return (__builtin_convertvector((IntVec)bits, Vec) + 0.5f) * 0x1p-23f;
}

// Returns -log(u) within 2 units in the last place, for normal u between 0 and 1. Polynomial of the Cephes library.
inline Vec exponentials(Vec u) {
  const IntVec bits = (IntVec)u;
  Vec m = (Vec)((bits & 0x007fffff) | 0x3f000000);
  const IntVec small = m < 0.707106781f;
  const Vec e = __builtin_convertvector((bits >> 23) - 126 + small, Vec);
  m = (small ? m + m : m) - 1.0f;
  const Vec square = m * m;
  Vec p = splat(7.0376836292e-2f);
  for (float c : {-1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f, -1.6668057665e-1f,
                  2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f})
    p = fma(p, m, splat(c));
  p = fma(e, splat(-2.12194440e-4f), p * m * square);
  p = fma(square, splat(-0.5f), p);
  return -fma(e, splat(0.693359375f), m + p);
}

// Runs the race over a row. bound(i, count) is at least weight(i, count), the weights of the tokens from i on, in
// all lanes but for rounding: where it shows that no token can win, only the bound is computed. The tokens about
// `first` run first. The winner is the first of those with the largest quotient, so the order changes nothing.
template <class Bound, class Weight>
int64_t race(int64_t size, Key key, int64_t first, const Bound& bound, const Weight& weight) {
  constexpr float kMargin = 1.001f;  // for rounding
  float best = 0.0f;
  int64_t winner = first;
  auto run = [&](int64_t i, int64_t count) {
    const Vec u = uniforms(i, key);
    if (!any(kMargin * bound(i, count) >= best * (1.0f - u))) return;  // as -log(u) >= 1 - u
    const Vec quotients = weight(i, count) / exponentials(u);
    for (int64_t lane = 0; lane < std::min(count, kLanes); ++lane) {
      const float found = quotients[lane];
      if (found > best || (found == best && i + lane < winner && found > 0.0f)) {
        best = found;
        winner = i + lane;
      }
    }
  };
  first -= first % kLanes;
  run(first, size - first);
  for (int64_t i = 0; i < size; i += kLanes) run(i, size - i);
  return winner;
}

// Last of some weights, and the mass of them all.
struct Border {
  float weight;
  double mass;
};

// Weights in buckets by their leading bits, to find the last of the largest ones without sorting all.
class Buckets {
 public:
  // Weights up to `least` are left out.
  Buckets(const float* weights, int64_t size, float least) : weights_(weights), size_(size) {
    visit([=](Vec found) { return found > least; },
          [this](float weight) {
            const int64_t bucket = number(weight);
            ++counts_[bucket];
            masses_[bucket] += weight;
          });
  }

  // Returns the last of the largest weights of which each is among the first `most`, and those before it have less
  // than `mass`. The first one always is.
  Border last(int64_t most, double mass) const {
    int64_t count = 0, lowest = kBuckets;
    double sum = 0.0;
    for (int64_t bucket = kBuckets - 1; bucket >= 0; --bucket) {
      if (counts_[bucket] == 0) continue;
      if (count > 0 && (count >= most || sum >= mass)) break;
      if (count + counts_[bucket] > most || sum + masses_[bucket] >= mass)
        return last_within(bucket, most - count, mass, sum);
      count += counts_[bucket];
      sum += masses_[bucket];
      lowest = bucket;
    }
    return lowest == kBuckets ? Border{0.0f, 0.0} : Border{sorted(lowest).back(), sum};
  }

 private:
  static constexpr int kShift = 19;  // leaves the exponent and 4 bits of the fraction
  static constexpr int64_t kBuckets = (0x3f800000 >> kShift) + 1;  // the largest weight is 1

  static int64_t number(float weight) {
    int32_t bits;
    std::memcpy(&bits, &weight, sizeof bits);
    return std::min<int64_t>(bits >> kShift, kBuckets - 1);
  }

  // Calls f for each weight that passes a test of a vector, in order.
  template <class Test, class F>
  void visit(const Test& test, const F& f) const {
    for (int64_t i = 0; i < size_; i += kLanes) {
      const Vec found = load_part(weights_ + i, size_ - i);
      const IntVec passed = test(found);
      if (!any(passed)) continue;
      for (int64_t lane = 0; lane < std::min(size_ - i, kLanes); ++lane)
        if (passed[lane]) f(found[lane]);
    }
  }

  std::vector<float> sorted(int64_t bucket) const {  // the largest first
    std::vector<float> found;
    visit([=](Vec each) { return ((IntVec)each >> kShift) == static_cast<int32_t>(bucket); },
          [&](float weight) { found.push_back(weight); });
    std::sort(found.begin(), found.end(), std::greater<float>());
    return found;
  }

  Border last_within(int64_t bucket, int64_t most, double mass, double sum) const {
    Border border{0.0f, sum};
    int64_t count = 0;
    for (float weight : sorted(bucket)) {
      if (count > 0 && (count >= most || border.mass >= mass)) break;
      border = {weight, border.mass + weight};
      ++count;
    }
    return border;
  }

  const float* weights_;
  int64_t size_;
  std::array<int64_t, kBuckets> counts_{};
  std::array<double, kBuckets> masses_{};
};

// Returns the lowest weight that passes top_k, top_p over the remaining tokens, and min_p.
float find_threshold(const float* weights, int64_t size, double total, const Draw& how) {
  const bool some = how.top_k > 0 && how.top_k < size;
  float least = 0.0f;
  if (some || how.top_p < 1.0) {
    // tokens below this have less than 1 - top_p in all
    const double small = some ? 0.0 : (1.0 - how.top_p) * total / static_cast<double>(size) * 0.999;
    const Buckets buckets(weights, size, static_cast<float>(small));
    if (some) {
      const Border border = buckets.last(how.top_k, std::numeric_limits<double>::infinity());
      least = border.weight;
      total = border.mass;
    }
    if (how.top_p < 1.0) least = std::max(least, buckets.last(size, how.top_p * total).weight);
  }
  return std::max(least, how.min_p);  // the largest weight is 1
}

// Sets the weights of the tokens to 0 that typical_p leaves out, of those that are at least `least`.
void keep_typical(float* weights, int64_t size, float least, double wanted) {
  std::vector<int64_t> kept;
  double total = 0.0, entropy = 0.0, mass = 0.0;
  for (int64_t i = 0; i < size; ++i)
    if (weights[i] > 0.0f && weights[i] >= least) {
      kept.push_back(i);
      total += weights[i];
    }
  std::vector<double> distances(kept.size());
  for (size_t n = 0; n < kept.size(); ++n) {
    const double share = weights[kept[n]] / total;
    distances[n] = -log(share);
    entropy += share * distances[n];
  }
  for (double& each : distances) each = std::abs(each - entropy);
  std::vector<size_t> order(kept.size());
  for (size_t n = 0; n < order.size(); ++n) order[n] = n;
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return distances[a] != distances[b] ? distances[a] < distances[b] : a < b;
  });
  double limit = 0.0;
  for (size_t n : order) {
    limit = distances[n];
    mass += weights[kept[n]] / total;
    if (mass >= wanted) break;
  }
  for (size_t n = 0; n < kept.size(); ++n)
    if (distances[n] > limit) weights[kept[n]] = 0.0f;
}

// Draws from the weights that pass the filters of a row.
int64_t draw_filtered(const float* logits, int64_t size, Peak peak, const Draw& how) {
  static thread_local std::vector<float> room;
  room.resize(size);
  float* weights = room.data();
  const double total = weigh(logits, size, peak.value, how.temperature, weights);
  const float threshold = find_threshold(weights, size, total, how);
  if (how.typical_p < 1.0) keep_typical(weights, size, threshold, how.typical_p);
  const Vec least = splat(threshold), zero{};
  auto weight = [&](int64_t i, int64_t count) {
    const Vec found = load_part(weights + i, count);
    return found < least ? zero : found;
  };
  return race(size, make_key(how), peak.index, weight, weight);
}

int64_t draw_from_all(const float* logits, int64_t size, Peak peak, const Draw& how) {
  const Vec most = splat(peak.value), divisor = splat(how.temperature), least = splat(kMinExponent), zero{};
  auto exponent = [&](int64_t i, int64_t count) { return (load_part(logits + i, count) - most) / divisor; };
  // 2^x is at most 1 + f for x = n + f, which is what the bits of n and f are as a float
  auto bound = [&](int64_t i, int64_t count) {
    const Vec x = exponent(i, count);
    const Vec limited = x < least ? least : x;
    return (Vec)(__builtin_convertvector(limited * 12102203.0f, IntVec) + 0x3f800000);
  };
  auto weight = [&](int64_t i, int64_t count) {
    const Vec x = exponent(i, count);
    return x < least ? zero : exp(x);
  };
  return race(size, make_key(how), peak.index, bound, weight);
}

int64_t draw(const float* logits, int64_t size, const Draw& how) {
  const Peak peak = find_peak(logits, size);
  if (!std::isfinite(peak.value)) return -1;
  if (how.temperature == 0.0f) return peak.index;
  const bool filters = how.top_k > 0 || how.top_p < 1.0 || how.min_p > 0.0f || how.typical_p < 1.0;
  return filters ? draw_filtered(logits, size, peak, how) : draw_from_all(logits, size, peak, how);
}

}  // namespace

extern "C" {

// Draws a token from each row of logits, [rows, size]; -1 where the highest is not finite.
void hr_draw(const float* logits, const void* draws, int64_t* tokens, int64_t rows, int64_t size) {
  const Draw* how = static_cast<const Draw*>(draws);
  for_each(rows, 4, [&](int64_t row) { tokens[row] = draw(logits + row * size, size, how[row]); });
}

}  // extern "C"
}  // namespace headrace

// Norms, activations and soft caps; each row is independent of the others.
#include <cmath>

#include "vector.h"

namespace headrace {
namespace {

constexpr int64_t kMinPerThread = 8192;  // numbers; with fewer, a second thread costs more than it saves

float sum_of_squares(const float* x, int64_t size) {
  Sums sums;
  int64_t i = 0;
  for (; i + kSumLanes <= size; i += kSumLanes)
    for (int64_t v = 0; v < kSumVecs; ++v) {
      const Vec a = load(x + i + v * kLanes);
      sums.parts[v] = fma(a, a, sums.parts[v]);
    }
  for (int64_t v = 0; i < size; i += kLanes, ++v) {
    const Vec a = load_part(x + i, size - i);
    sums.parts[v] = fma(a, a, sums.parts[v]);
  }
  return sums.total();
}

}  // namespace

// Computes x / rms(x) * weight; `out` may be `x`.
void norm_row(const float* x, const float* weight, float* out, int64_t size, float eps) {
  const Vec scale = splat(1.0f / std::sqrt(sum_of_squares(x, size) / static_cast<float>(size) + eps));
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t left = size - i;
    store_part(out + i, load_part(weight + i, left) * (load_part(x + i, left) * scale), left);
  }
}

extern "C" {

// Adds x, if given, to residual, and stores the norm of residual in out. All are [rows, size].
void hr_add_rms_norm(const float* x, float* residual, const float* weight, float* out, int64_t rows, int64_t size,
                     float eps) {
  for_each(rows, kMinPerThread / size, [&](int64_t row) {
    float* sums = residual + row * size;
    if (x != nullptr)
      for (int64_t i = 0; i < size; ++i) sums[i] += x[row * size + i];
    norm_row(sums, weight, out + row * size, size, eps);
  });
}

// Computes out [rows, size] from gate and up side by side in [rows, 2 * size]. Activations: 0 is silu(gate) * up;
// 1 is gelu(gate) * up by the approximation with tanh, which is gate times a logistic function; 2 is the clamped
// gate of gpt-oss, with its steepness and limit.
void hr_activate(const float* gate_up, float* out, int64_t rows, int64_t size, int64_t activation, float steepness,
                 float limit) {
  auto silu = [](Vec gate, Vec up) { return gate / (exp(-gate) + 1.0f) * up; };
  auto gelu = [](Vec gate, Vec up) {
    const Vec inner = 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);  // 2 sqrt(2 / pi)
    return gate / (exp(-inner) + 1.0f) * up;
  };
  auto clamped = [=](Vec gate, Vec up) {
    const Vec most = splat(limit);
    gate = gate > most ? most : gate;
    up = up > most ? most : up;
    up = up < -most ? -most : up;
    return (up + 1.0f) * (gate / (exp(-gate * steepness) + 1.0f));
  };
  auto run = [&](const auto& activate) {
    for_each(rows, kMinPerThread / 4 / size, [&](int64_t row) {
      const float *gate = gate_up + row * 2 * size, *up = gate + size;
      float* to = out + row * size;
      for (int64_t i = 0; i < size; i += kLanes) {
        const int64_t left = size - i;
        store_part(to + i, activate(load_part(gate + i, left), load_part(up + i, left)), left);
      }
    });
  };
  if (activation == 0)
    run(silu);
  else if (activation == 1)
    run(gelu);
  else
    run(clamped);
}

// Replaces x, [rows, size], by cap * tanh(x / cap).
void hr_soft_cap(float* x, int64_t rows, int64_t size, float cap) {
  for_each(rows, kMinPerThread / 4 / size, [&](int64_t row) {
    float* at = x + row * size;
    for (int64_t i = 0; i < size; i += kLanes)
      store_part(at + i, tanh(load_part(at + i, size - i) / cap) * cap, size - i);
  });
}

}  // extern "C"
}  // namespace headrace

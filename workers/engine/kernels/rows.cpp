// Norms, activations and soft caps; each row is independent of the others.
#include "rows.h"

#include <cmath>

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

void norm_row(const float* x, const float* weight, float* out, int64_t size, float eps) {
  const Vec scale = splat(1.0f / std::sqrt(sum_of_squares(x, size) / static_cast<float>(size) + eps));
  for (int64_t i = 0; i < size; i += kLanes) {
    const int64_t left = size - i;
    store_part(out + i, load_part(weight + i, left) * (load_part(x + i, left) * scale), left);
  }
}

void add_norm_row(const float* x, float* residual, const float* weight, float* out, int64_t size, float eps) {
  if (x != nullptr)
    for (int64_t i = 0; i < size; ++i) residual[i] += x[i];
  norm_row(residual, weight, out, size, eps);
}

// Activations: 0 is silu(gate) * up; 1 is gelu(gate) * up by the approximation with tanh, which is gate times a
// logistic function; 2 is the clamped gate of gpt-oss, with its steepness and limit.
void activate_row(const float* gate_up, float* out, int64_t size, const ActivationForm& form) {
  auto silu = [](Vec gate, Vec up) { return gate / (exp(-gate) + 1.0f) * up; };
  auto gelu = [](Vec gate, Vec up) {
    const Vec inner = 1.5957691216057308f * (gate + 0.044715f * gate * gate * gate);  // 2 sqrt(2 / pi)
    return gate / (exp(-inner) + 1.0f) * up;
  };
  auto clamped = [&](Vec gate, Vec up) {
    const Vec most = splat(form.limit);
    gate = gate > most ? most : gate;
    up = up > most ? most : up;
    up = up < -most ? -most : up;
    return (up + 1.0f) * (gate / (exp(-gate * form.steepness) + 1.0f));
  };
  auto run = [&](const auto& activate) {
    const float *gate = gate_up, *up = gate_up + size;
    for (int64_t i = 0; i < size; i += kLanes) {
      const int64_t left = size - i;
      store_part(out + i, activate(load_part(gate + i, left), load_part(up + i, left)), left);
    }
  };
  if (form.kind == 0)
    run(silu);
  else if (form.kind == 1)
    run(gelu);
  else
    run(clamped);
}

extern "C" {

// Adds x, if given, to residual, and stores the norm of residual in out. All are [rows, size].
void hr_add_rms_norm(const float* x, float* residual, const float* weight, float* out, int64_t rows, int64_t size,
                     float eps) {
  for_each(rows, kMinPerThread / size, [&](int64_t row) {
    const int64_t at = row * size;
    add_norm_row(x == nullptr ? nullptr : x + at, residual + at, weight, out + at, size, eps);
  });
}

// Computes out [rows, size] from gate and up side by side in [rows, 2 * size].
void hr_activate(const float* gate_up, float* out, int64_t rows, int64_t size, const ActivationForm* form) {
  for_each(rows, kMinPerThread / 4 / size,
           [&](int64_t row) { activate_row(gate_up + row * 2 * size, out + row * size, size, *form); });
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

// Operations on one row of numbers.
#pragma once

#include "vector.h"

namespace headrace {

// Form of an MLP's activation; see `Activation` in __init__.py.
struct ActivationForm {
  int64_t kind;
  float steepness, limit;
};

// Computes x / rms(x) * weight; `out` may be `x`.
void norm_row(const float* x, const float* weight, float* out, int64_t size, float eps);

// Adds x, if given, to residual, and stores the norm of residual in out.
void add_norm_row(const float* x, float* residual, const float* weight, float* out, int64_t size, float eps);

// Computes out [size] from gate and up side by side in [2 * size].
void activate_row(const float* gate_up, float* out, int64_t size, const ActivationForm& form);

}  // namespace headrace

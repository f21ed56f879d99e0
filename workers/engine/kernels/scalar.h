// Logarithm, sine and cosine in double, one number at a time: the same bits on every CPU, which the C library's
// are not, since it has several versions. Polynomials of fdlibm.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

namespace headrace {

// Returns the natural logarithm of a positive normal number within 1 unit in the last place; NaN for others.
inline double log(double x) {
  if (!(x >= std::numeric_limits<double>::min()) || x > std::numeric_limits<double>::max())
    return std::numeric_limits<double>::quiet_NaN();
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits += (uint64_t{0x3ff00000} - 0x3fe6a09e) << 32;  // so that the fraction is between the roots of 1/2 and 2
  const double k = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023);
  bits = (bits & 0x000fffffffffffff) + (uint64_t{0x3fe6a09e} << 32);
  std::memcpy(&x, &bits, sizeof x);
  const double f = x - 1.0, s = f / (2.0 + f), z = s * s, w = z * z, half = 0.5 * f * f;
  const double even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01));
  const double odd = z * (6.666666666666735130e-01 + w * (2.857142874366239149e-01 +
                          w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01)));
  return k * 6.93147180369123816490e-01 - ((half - (s * (half + even + odd) + k * 1.90821492927058770002e-10)) - f);
}

struct Angle {
  double cosine, sine;
};

// Returns cosine and sine of an angle below a million within 1 unit in the last place.
inline Angle turn(double x) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double n = (x * 6.36619772367581382433e-01 + kShift) - kShift;
  double r = x - n * 1.57079632673412561417e+00;  // half of pi in three parts, of which the products are exact
  r = r - n * 6.07710050630396597660e-11;
  r = r - n * 2.02226624879595063154e-21;
  const double z = r * r;
  const double sine = r + r * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 +
                      z * (-1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 +
                      z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
  const double cosine = 1.0 - (0.5 * z - z * z * (4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 +
                        z * (2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 +
                        z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11))))));
  switch (static_cast<int64_t>(n) & 3) {
    case 0: return {cosine, sine};
    case 1: return {-sine, cosine};
    case 2: return {-cosine, -sine};
    default: return {sine, -cosine};
  }
}

}  // namespace headrace

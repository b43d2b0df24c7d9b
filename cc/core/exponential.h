// exp(x), fit for a loop over many x.
//
//   x = n ln 2 + r,  |r| <= ln 2 / 2        exp(x) = 2^n exp(r)
//
// In float, exp(r) is the polynomial of Cephes' expf (Moshier), 2^n comes in two factors, so that results below the
// normal range are rounded once; the error is below 2 ulp everywhere. No branch, no table: a loop over it vectorises. -inf
// gives 0, +inf and whatever overflows +inf, a NaN stays one.
#ifndef LSOFTMAX_CORE_EXPONENTIAL_H_
#define LSOFTMAX_CORE_EXPONENTIAL_H_

#include <math.h>

#include "core/half.h"

namespace lsoftmax {

LSOFTMAX_INLINE double exponential(double x) { return exp(x); }

LSOFTMAX_INLINE float exponential(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
  x = x < -104.0f ? -104.0f : x;
  x = x > 104.0f ? 104.0f : x;
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const int32_t exponent = static_cast<int32_t>(bits_of(shifted) - bits_of(kRound));
  const int32_t half = exponent >> 1;
  return p * float_of(static_cast<uint32_t>(half + 127) << 23) *
         float_of(static_cast<uint32_t>(exponent - half + 127) << 23);
#endif
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_EXPONENTIAL_H_

// exp(x) for x <= 0, fit for a loop over many x.
//
//   x = n ln 2 + r,  |r| <= ln 2 / 2        exp(x) = 2^n exp(r)
//
// In float, exp(r) is a polynomial of degree 6 (minimax in relative error), and 2^n is 2^(n + 24) 2^-24, so that
// results below the normal range are rounded once. The error is below 2 ulp everywhere. No branch, no table: a loop
// over it vectorises. -inf gives 0, a NaN stays one.
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
  x = -104.0f > x ? -104.0f : x;         // where exp(x) rounds to 0
  const float shifted = x * 1.44269504f + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.38436072e-3f;
  p = p * r + 8.37419555e-3f;
  p = p * r + 4.16680053e-2f;
  p = p * r + 1.66664302e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * float_of((bits_of(shifted) << 23) + ((127u + 24u) << 23)) * 0x1p-24f;
#endif
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_EXPONENTIAL_H_

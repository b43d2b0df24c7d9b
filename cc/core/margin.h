// The large margin of one sample: the target logit and its derivatives (Liu et al., ICML 2016, equations 4-6).
//
// A feature vector x and the weight column w of its class enter through three numbers alone, the target's geometry
//
//   s = x . w      A = |x|^2      B = |w|^2
//
// from which, with r = sqrt(A B) = |x||w|, alpha = 1 / (1 + lambda) and c = clamp(s / r, -1, 1) = cos(theta),
//
//   t      = s + alpha (r psi - s)                     the target logit, (lambda s + r psi) / (1 + lambda)
//   psi    = (-1)^k T_m(c) - 2k                        on the segment theta in [k pi/m, (k+1) pi/m]
//   psi'   = (-1)^k m U_{m-1}(c)                       its derivative in c
//   dt/ds  = 1 + alpha (psi' - 1)
//   dt/dA  = alpha (psi - c psi') sqrt(B/A) / 2
//   dt/dB  = alpha (psi - c psi') sqrt(A/B) / 2
//
// T and U are the Chebyshev polynomials of the first and second kind, from one recurrence:
// U_{j+1} = 2c U_j - U_{j-1} and T_m = c U_{m-1} - U_{m-2}. The recurrence also tells the segment. The roots of U_{m-1} are the
// segments' edges cos(j pi / m), and U_0 .. U_{m-1} is a Sturm sequence: it changes sign once for every root
// above c, so the number of sign changes is k. No angle, no table, no search; psi is continuously
// differentiable, so a c that rounds across an edge does no harm.
#ifndef LSOFTMAX_CORE_MARGIN_H_
#define LSOFTMAX_CORE_MARGIN_H_

#include <math.h>

#include "core/inline.h"

namespace lsoftmax {

constexpr int kMaxMargin = 64;

// psi and its derivative in c at one angle, and the segment of that angle.
template <typename Real>
struct Psi {
  Real value;
  Real slope;
  int segment;
};

// Requires 1 <= margin and -1 <= c <= 1; a NaN gives NaN on segment 0.
template <typename Real>
LSOFTMAX_INLINE Psi<Real> psi(int margin, Real c) {
  Real before = 0, u = 1;  // U_{j-1} and U_j, from j = 0
  int segment = 0;
  bool negative = false;
  for (int j = 1; j < margin; ++j) {
    const Real next = 2 * c * u - before;
    before = u;
    u = next;
    if (negative ? u > 0 : u < 0) {
      negative = !negative;
      ++segment;
    }
  }
  const Real sign = negative ? -1 : 1;  // (-1)^k
  return {sign * (c * u - before) - 2 * segment, sign * margin * u, segment};
}

// cos(theta), clamped: rounding may carry s / r past a pole. 0 where a norm is zero; a NaN stays one.
template <typename Real>
LSOFTMAX_INLINE Real cos_theta(Real s, Real A, Real B) {
  if (A == 0 || B == 0) return 0;
  const Real c = s / sqrt(A) / sqrt(B);
  return c < -1 ? Real(-1) : c > 1 ? Real(1) : c;
}

// alpha = 1 / (1 + lambda): how much of the margin counts. 0 where lambda is infinite.
template <typename Real>
LSOFTMAX_INLINE Real margin_share(Real lambda) {
  return 1 / (1 + lambda);
}

// Whether the margin changes this sample at all. Where it does not, the logit and its gradient are the dense
// layer's own and are left untouched, to the last bit.
template <typename Real>
LSOFTMAX_INLINE bool has_margin(int margin, Real alpha, Real A, Real B) {
  return margin > 1 && alpha != 0 && A != 0 && B != 0;
}

// The target logit t and its derivatives in s, A and B.
template <typename Real>
struct TargetLogit {
  Real value;
  Real d_dot;
  Real d_features_sq;
  Real d_weights_sq;
};

// Requires has_margin(margin, alpha, A, B).
template <typename Real>
LSOFTMAX_INLINE TargetLogit<Real> target_logit(int margin, Real alpha, Real s, Real A, Real B) {
  const Real a = sqrt(A), b = sqrt(B);
  const Real c = cos_theta(s, A, B);
  const Psi<Real> p = psi(margin, c);
  const Real q = alpha * (p.value - c * p.slope) / 2;
  return {s + alpha * (a * b * p.value - s), 1 + alpha * (p.slope - 1), q * b / a, q * a / b};
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_MARGIN_H_

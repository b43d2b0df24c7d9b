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
// Where the margin changes nothing (m = 1, alpha = 0 or a zero norm) t is the dense layer's logit s, and dt/ds = 1.
//
// T and U are the Chebyshev polynomials of the first and second kind, from one recurrence:
// U_{j+1} = 2c U_j - U_{j-1} and T_m = c U_{m-1} - U_{m-2}. The recurrence also tells the segment. The roots of U_{m-1}
// are the segments' edges cos(j pi / m), and U_0 .. U_{m-1} is a Sturm sequence: it changes sign once for every root
// above c, so the number of sign changes is k. No angle, no table, no search; psi is continuously differentiable, so a
// c that rounds across an edge does no harm.
#ifndef LSOFTMAX_CORE_MARGIN_H_
#define LSOFTMAX_CORE_MARGIN_H_

#include "core/words.h"

namespace lsoftmax {

constexpr int kMaxMargin = 64;

// psi(theta) is the monotone continuation of cos(m theta + shift) - offset. `shift` and `offset` are 0 for now: other
// values are refused where arguments are checked.
struct Margin {
  int m = 1;  // 1 <= m <= kMaxMargin
  double shift = 0, offset = 0;
};

// What the margin needs to know of a row; or the derivatives of something in it.
template <typename Real>
struct Geometry {
  Real dot, features_sq, weights_sq;  // s, A and B
};

// psi and its derivative in c at one angle, and the segment of that angle.
template <typename Real>
struct Psi {
  Real value, slope, segment;
};

// Requires -1 <= c <= 1; a NaN gives NaN on segment 0.
template <typename Real>
LSOFTMAX_INLINE Psi<Real> psi(const Margin& margin, Real c) {
  const Real zero = number(c, 0), one = number(c, 1), two = number(c, 2);
  Real before = zero, u = one;      // U_{j-1} and U_j, from j = 0
  Real segment = zero, sign = one;  // beside U, not in it, where XLA would take minutes to compile large margins
  for (int j = 1; j < margin.m; ++j) {
    const Real next = two * c * u - before;
    before = u;
    u = next;
    const auto changes = less(sign * u, zero);
    segment = where(changes, segment + one, segment);
    sign = where(changes, -sign, sign);  // (-1)^k
  }
  return {sign * (c * u - before) - two * segment, sign * number(c, margin.m) * u, segment};
}

// cos(theta), clamped: rounding may carry s / r past a pole. 0 where a norm is zero; a NaN stays one.
template <typename Real>
LSOFTMAX_INLINE Real cos_theta(const Geometry<Real>& g) {
  const Real zero = number(g.dot, 0), one = number(g.dot, 1);
  const Real c = g.dot / root(g.features_sq) / root(g.weights_sq);
  const Real clamped = where(less(c, -one), -one, where(less(one, c), one, c));
  return where(either(is_zero(g.features_sq), is_zero(g.weights_sq)), zero, clamped);
}

// alpha = 1 / (1 + lambda): how much of the margin counts. 0 where lambda is infinite.
template <typename Real>
LSOFTMAX_INLINE Real margin_share(Real lambda) {
  return number(lambda, 1) / (number(lambda, 1) + lambda);
}

// Whether the margin changes nothing: logit and gradient are the dense layer's own, and are left untouched, to the last
// bit.
template <typename Real>
LSOFTMAX_INLINE auto is_dense(const Margin& margin, Real alpha, const Geometry<Real>& g) {
  const auto no_margin = either(is_zero(number(alpha, margin.m - 1)), is_zero(alpha));
  return either(no_margin, either(is_zero(g.features_sq), is_zero(g.weights_sq)));
}

// The target logit t and its derivatives in the geometry.
template <typename Real>
struct TargetLogit {
  Real value;
  Geometry<Real> slope;
};

template <typename Real>
LSOFTMAX_INLINE TargetLogit<Real> target_logit(const Margin& margin, Real alpha, const Geometry<Real>& g) {
  const Real zero = number(g.dot, 0), one = number(g.dot, 1), s = g.dot;
  const Real a = root(g.features_sq), b = root(g.weights_sq), c = cos_theta(g);
  const Psi<Real> p = psi(margin, c);
  const Real q = alpha * (p.value - c * p.slope) / number(s, 2);
  const auto dense = is_dense(margin, alpha, g);
  return {
      where(dense, s, s + alpha * (a * b * p.value - s)),
      {where(dense, one, one + alpha * (p.slope - one)), where(dense, zero, q * b / a), where(dense, zero, q * a / b)}};
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_MARGIN_H_

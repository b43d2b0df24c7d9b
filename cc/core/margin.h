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
//
// The other margins (CosFace, ArcFace, SphereFace, combined) have terms: with phi = m theta + shift,
//
//   psi    = (-1)^k cos(phi) - 2k - offset             on phi in [k pi, (k+1) pi]
//   psi'   = (-1)^k m (U_{m-1} cos(shift) + T_m sin(shift) / sin(theta))
//   R      = scale a^(1 - p) b^(1 - q)                 a = |x|, b = |w|; p, q: 1 where they are divided by, else 0
//   v      = c + alpha (psi - c)        v' = 1 + alpha (psi' - 1)
//   t      = R v                        dt/ds = R v' / (a b)
//   dt/dA  = R ((1 - p) v - c v') / 2A  dt/dB = R ((1 - q) v - c v') / 2B
//
// and where a norm is zero that is divided by (or below 2^-60), all of it is 0. No angle either: m theta - k pi has the
// cosine (-1)^k T_m and the sine (-1)^k U_{m-1} sin(theta), which a shift carries into the next segment where the
// cosine is below -cos(shift).
//
// At the poles a shift gives psi the tip of a cone, and psi' no limit: 1 / sin(theta) is taken as
// sin(theta) / max(sin(theta)^2, 2^-46), which is 0 there: within 1.2e-7 of a pole the tip is smoothed. (c is known to
// 2^-53, so theta is known to 1.5e-8 there.)
#ifndef LSOFTMAX_CORE_MARGIN_H_
#define LSOFTMAX_CORE_MARGIN_H_

#include "core/words.h"

namespace lsoftmax {

constexpr int kMaxMargin = 64;

// What is known of a margin when a kernel is made.
struct Margin {
  int m = 1;  // 1 <= m <= kMaxMargin
  bool normalize_features = false, normalize_weights = false;
  bool linear = false;  // m = 1; beyond phi = pi, instead of the above: psi = c - shift sin(shift) - offset
};

// Its numbers, and those of the loss (softmax.h): of all rows.
template <typename Real>
struct Terms {
  Real shift, cos_shift, sin_shift;
  Real offset, scale;
  Real smoothing, smoothing_of_class;  // the share of the target distribution that all classes have, and each of them
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

// (-1)^k T_m(c), (-1)^k U_{m-1}(c) and k: the cosine of m theta - k pi, and its sine over sin(theta).
template <typename Real>
struct Turned {
  Real cosine, sine_ratio, segment;
};

// Requires -1 <= c <= 1; a NaN gives NaN on segment 0.
template <typename Real>
LSOFTMAX_INLINE Turned<Real> turned(int m, Real c) {
  const Real zero = number(c, 0), one = number(c, 1), two = number(c, 2);
  Real before = zero, u = one;      // U_{j-1} and U_j, from j = 0
  Real segment = zero, sign = one;  // beside U, not in it, where XLA would take minutes to compile large margins
  for (int j = 1; j < m; ++j) {
    const Real next = two * c * u - before;
    before = u;
    u = next;
    const auto changes = less(sign * u, zero);
    segment = where(changes, segment + one, segment);
    sign = where(changes, -sign, sign);  // (-1)^k
  }
  return {sign * (c * u - before), sign * u, segment};
}

template <typename Real>
LSOFTMAX_INLINE Psi<Real> psi(const Margin& margin, Real c) {
  const Turned<Real> t = turned(margin.m, c);
  return {t.cosine - number(c, 2) * t.segment, number(c, margin.m) * t.sine_ratio, t.segment};
}
template <typename Real>
LSOFTMAX_INLINE Psi<Real> psi(const Margin& margin, const Terms<Real>& terms, Real c) {
  const Real one = number(c, 1), pole = number(c, 0x1p-46);
  const Turned<Real> t = turned(margin.m, c);
  const Real sin_sq = (one - c) * (one + c), sine = root(sin_sq);
  const Real over_sine = sine / where(less(sin_sq, pole), pole, sin_sq);
  const Real value = t.cosine * terms.cos_shift - t.sine_ratio * sine * terms.sin_shift;
  const Real slope = number(c, margin.m) * (t.sine_ratio * terms.cos_shift + t.cosine * over_sine * terms.sin_shift);
  const auto beyond = less(t.cosine, -terms.cos_shift);
  const Real segment = where(beyond, t.segment + one, t.segment);
  const Real next = margin.linear ? c - terms.shift * terms.sin_shift : -value - number(c, 2) * segment;
  return {where(beyond, next, value - number(c, 2) * segment) - terms.offset,
          where(beyond, margin.linear ? one : -slope, slope), segment};
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

// 1 / sqrt(norm_sq), for norms that are divided by; 0 where they count as zero, below 2^-60: float32 would not hold
// what is divided by two of them.
template <typename Real>
LSOFTMAX_INLINE Real inverse_norm(Real norm_sq) {
  const Real least = number(norm_sq, 0x1p-120);
  return where(less(norm_sq, least), number(norm_sq, 0), number(norm_sq, 1) / root(norm_sq));
}

// What the logits of a row are multiples of, and of a class: scale / |x|, and 1 / |w|.
template <typename Real>
LSOFTMAX_INLINE Real row_factor(const Margin& margin, const Terms<Real>& terms, Real features_sq) {
  return margin.normalize_features ? terms.scale * inverse_norm(features_sq) : terms.scale;
}
template <typename Real>
LSOFTMAX_INLINE Real class_factor(const Margin& margin, Real weights_sq) {
  return margin.normalize_weights ? inverse_norm(weights_sq) : number(weights_sq, 1);
}

template <typename Real>
LSOFTMAX_INLINE TargetLogit<Real> target_logit(const Margin& margin, const Terms<Real>& terms, Real alpha,
                                               const Geometry<Real>& g) {
  const Real zero = number(g.dot, 0), one = number(g.dot, 1), two = number(g.dot, 2), c = cos_theta(g);
  const Psi<Real> p = psi(margin, terms, c);
  const Real v = c + alpha * (p.value - c), slope = one + alpha * (p.slope - one);
  // R / (a b), the plain logit over s.
  const Real factor = row_factor(margin, terms, g.features_sq) * class_factor(margin, g.weights_sq);
  const Real radius = factor * root(g.features_sq) * root(g.weights_sq);
  const auto dense = either(is_zero(g.features_sq), is_zero(g.weights_sq));
  const Real of_features = (margin.normalize_features ? zero : v) - c * slope;
  const Real of_weights = (margin.normalize_weights ? zero : v) - c * slope;
  return {where(dense, factor * g.dot, radius * v),
          {where(dense, factor, factor * slope), where(dense, zero, radius * of_features / (two * g.features_sq)),
           where(dense, zero, radius * of_weights / (two * g.weights_sq))}};
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_MARGIN_H_

// The softmax cross-entropy of one row, and its derivatives, from two numbers about its other classes.
//
// Let z_y be the target's logit and z_j those of the other classes. With
//
//   m = max_j z_j       S = sum_j exp(z_j - m)       M = max(m, z_y)       R = S exp(m - M)       e = exp(z_y - M)
//
// the loss and its derivatives are
//
//   loss = log(R + e) + M - z_y                      never negative; log1p(R) where the target leads: no digit is lost
//   dloss/dz_y = -R / (R + e)                        p_y - 1, without its cancellation
//   dloss/dz_j = exp(z_j - m) exp(m - M) / (R + e)   p_j
//
// m, which is one of the logits to the last bit, and exp(m - M) / (R + e) are called the row's normalizer.
// z_y = t + b_y with t of margin.h, from the row's geometry.
//
// Labels may be smoothed: the target distribution is 1 - epsilon on the class and epsilon / C on each of the C. With
// Z = sum_j z_j, that adds to the loss and to its derivatives
//
//   epsilon z_y - epsilon / C (Z + z_y)        dloss/dz_y: epsilon - epsilon / C        dloss/dz_j: -epsilon / C
//
// of which the last is the normalizer's third number. Where the logits are multiples of the products (margin.h), the
// normalizer is in the products' derivatives, but for the class's own factor: both numbers times the row's factor.
//
// m, S and Z may be gathered in parts, block after block of the classes, beside the largest plain logit so far and its
// class. In memory all five are the row's `sums`. Z is summed up only where labels are smoothed.
#ifndef LSOFTMAX_CORE_SOFTMAX_H_
#define LSOFTMAX_CORE_SOFTMAX_H_

#include "core/grad_unit.h"
#include "core/margin.h"

namespace lsoftmax {

template <typename Real>
struct Sums {
  Real max, sum;         // m and S, of the classes but the target
  Real best, predicted;  // the largest plain logit, of all classes, and where it is first
  Real total;            // Z, of the classes but the target; or 0
};

// S exp(m - M): a sum relative to m, from now on relative to `max` >= m.
template <typename Real>
LSOFTMAX_INLINE Real rescale(Real sum, Real m, Real max) {
  return where(is_zero(sum), sum, sum * natural_exp(m - max));
}

// The sums over two blocks of classes, `a` the earlier one.
template <typename Real>
LSOFTMAX_INLINE Sums<Real> merge(const Sums<Real>& a, const Sums<Real>& b) {
  const Real max = where(less(a.max, b.max), b.max, a.max);
  const auto later = less(a.best, b.best);
  return {max, rescale(a.sum, a.max, max) + rescale(b.sum, b.max, max), where(later, b.best, a.best),
          where(later, b.predicted, a.predicted), a.total + b.total};
}

template <typename Real>
struct Normalizer {
  Real max, scale;  // m and exp(m - M) / (R + e); both 0 where there is no other class, or all are -inf
  Real addend;      // -epsilon / C
};

template <typename Real>
struct CrossEntropy {
  Real loss;
  Real slope;  // in the target's logit
  Normalizer<Real> normalizer;
  Real rest;  // the derivatives in the other classes' logits: at most this in sum, signs aside
};

template <typename Real>
LSOFTMAX_INLINE CrossEntropy<Real> cross_entropy(const Sums<Real>& others, Real target) {
  const Real zero = number(target, 0), one = number(target, 1);
  const auto behind = less(target, others.max), alone = is_zero(others.sum);
  const Real lead = target - others.max, small = natural_exp(where(behind, lead, -lead));  // exp(min - max) of the two
  // With an infinite logit in the lead, 0 times it: NaN.
  const Real rest = where(alone, zero, where(behind, others.sum + zero * others.max, others.sum * small));
  const Real own = where(behind, small, one + zero * target);
  const Real loss = where(behind, natural_log(rest + own) - lead, natural_log1p(rest) + zero * target);
  const Real scale = where(behind, one, small) / (rest + own);
  const Real of_others = rest / (rest + own);
  return {loss, -of_others, {where(alone, zero, others.max), where(alone, zero, scale), zero}, of_others};
}
template <typename Real>
LSOFTMAX_INLINE CrossEntropy<Real> smoothed_cross_entropy(const Terms<Real>& terms, const Sums<Real>& others,
                                                          Real target) {
  const CrossEntropy<Real> h = cross_entropy(others, target);
  const Real epsilon = terms.smoothing, of_class = terms.smoothing_of_class;
  // Without smoothing, not 0 times an infinite logit.
  const Real addend = epsilon * target - of_class * (others.total + target);
  return {where(is_zero(epsilon), h.loss, h.loss + addend),
          h.slope + (epsilon - of_class),
          {h.normalizer.max, h.normalizer.scale, -of_class},
          h.rest + (epsilon - of_class)};
}

// What a row's sums and its geometry make of it: the loss, and in units of `unit` (grad_unit.h) its derivatives in the
// target's logit and in the geometry, and the normalizer.
template <typename Real>
struct Finished {
  Real loss, target_grad;
  Geometry<Real> geometry_grad;
  Normalizer<Real> normalizer;
  Real unit;
};

// Of the row's cross-entropy and its target's logit t, without its bias. `of_row`, `of_class`: the factors of the row's
// logits and of its target's (margin.h), by which the derivatives in the products differ from those in the logits: the
// unit fits classes whose norms are the target's, or 1 if that is 0. `rows` is N. Without a unit it is 1.
template <typename Real>
LSOFTMAX_INLINE Finished<Real> finish(const CrossEntropy<Real>& h, const TargetLogit<Real>& t, Real of_row,
                                      Real of_class, Real features_sq, Real depth, int64_t rows, bool has_unit) {
  const Real one = number(depth, 1);
  const Real scale = h.normalizer.scale * of_row, addend = h.normalizer.addend * of_row;
  const Real factor = where(is_zero(of_class), one, of_class), largest = (scale - addend) * factor;
  const Real lift = has_unit ? grad_lift(largest, h.rest * of_row * factor, features_sq, depth, rows) : one;
  const Real slope = h.slope * lift;
  return {h.loss,
          slope,
          {slope * t.slope.dot, slope * t.slope.features_sq, slope * t.slope.weights_sq},
          {h.normalizer.max, scale * lift, addend * lift},
          one / lift};
}

// From the row's sums; `terms` may be null: none. `t` is of the same margin and geometry.
template <typename Real>
LSOFTMAX_INLINE Finished<Real> finish(const Margin& margin, const Terms<Real>* terms, const TargetLogit<Real>& t,
                                      const Geometry<Real>& geometry, Real bias, const Sums<Real>& sums, Real depth,
                                      int64_t rows, bool has_unit) {
  const Real one = number(depth, 1), features_sq = geometry.features_sq;
  if (terms == nullptr) {
    return finish(cross_entropy(sums, t.value + bias), t, one, one, features_sq, depth, rows, has_unit);
  }
  return finish(smoothed_cross_entropy(*terms, sums, t.value + bias), t, row_factor(margin, *terms, features_sq),
                class_factor(margin, geometry.weights_sq), features_sq, depth, rows, has_unit);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_SOFTMAX_H_

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
// m and S may be gathered in parts, block after block of the classes, beside the largest plain logit so far and its
// class. In memory all four are the row's `sums`.
#ifndef LSOFTMAX_CORE_SOFTMAX_H_
#define LSOFTMAX_CORE_SOFTMAX_H_

#include "core/grad_unit.h"
#include "core/margin.h"

namespace lsoftmax {

template <typename Real>
struct Sums {
  Real max, sum;         // m and S, of the classes but the target
  Real best, predicted;  // the largest plain logit, of all classes, and where it is first
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
          where(later, b.predicted, a.predicted)};
}

template <typename Real>
struct Normalizer {
  Real max, scale;  // m and exp(m - M) / (R + e); both 0 where there is no other class, or all are -inf
};

template <typename Real>
struct CrossEntropy {
  Real loss;
  Real slope;  // in the target's logit
  Normalizer<Real> normalizer;
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
  return {loss, -rest / (rest + own), {where(alone, zero, others.max), where(alone, zero, scale)}};
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

// `t`: the target's logit without its bias; `rows` is N. Without a unit it is 1.
template <typename Real>
LSOFTMAX_INLINE Finished<Real> finish(const TargetLogit<Real>& t, Real features_sq, Real bias, const Sums<Real>& sums,
                                      Real depth, int64_t rows, bool has_unit) {
  const CrossEntropy<Real> h = cross_entropy(sums, t.value + bias);
  const Real one = number(bias, 1);
  const Real lift = has_unit ? grad_lift(h.normalizer.scale, -h.slope, features_sq, depth, rows) : one;
  const Real slope = h.slope * lift;
  return {h.loss,
          slope,
          {slope * t.slope.dot, slope * t.slope.features_sq, slope * t.slope.weights_sq},
          {h.normalizer.max, h.normalizer.scale * lift},
          one / lift};
}
template <typename Real>
LSOFTMAX_INLINE Finished<Real> finish(const Margin& margin, Real alpha, const Geometry<Real>& geometry, Real bias,
                                      const Sums<Real>& sums, Real depth, int64_t rows, bool has_unit) {
  return finish(target_logit(margin, alpha, geometry), geometry.features_sq, bias, sums, depth, rows, has_unit);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_SOFTMAX_H_

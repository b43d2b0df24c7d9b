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
// m, which is one of the logits to the last bit, and exp(m - M) / (R + e) are called the row's normalizer. z_y = t + b_y with
// t of margin.h, from the row's geometry.
//
// m and S may be gathered in parts, block after block of the classes, beside the largest plain logit so far and its
// class. In memory all four are the row's `sums`.
#ifndef LSOFTMAX_CORE_SOFTMAX_H_
#define LSOFTMAX_CORE_SOFTMAX_H_

#include "core/grad_unit.h"
#include "core/target.h"

namespace lsoftmax {

struct Sums {
  double max, sum;         // m and S, of the classes but the target
  double best, predicted;  // the largest plain logit, of all classes, and where it is first
};

LSOFTMAX_INLINE Sums no_sums() { return {-static_cast<double>(INFINITY), 0, -static_cast<double>(INFINITY), 0}; }

template <typename T>
LSOFTMAX_INLINE Sums sums_of(const Arguments<T>& args, int64_t row) {
  return {args.sums[row], args.sums[args.rows + row], args.sums[2 * args.rows + row], args.sums[3 * args.rows + row]};
}

template <typename T>
LSOFTMAX_INLINE void store(const Arguments<T>& args, int64_t row, const Sums& sums) {
  args.sums[row] = sums.max;
  args.sums[args.rows + row] = sums.sum;
  args.sums[2 * args.rows + row] = sums.best;
  args.sums[3 * args.rows + row] = sums.predicted;
}

// S exp(m - M): a sum relative to m, from now on relative to `max` >= m.
LSOFTMAX_INLINE double rescale(double sum, double m, double max) { return sum == 0 ? 0 : sum * exp(m - max); }

// The sums over two blocks of classes, `a` the earlier one.
LSOFTMAX_INLINE Sums merge(const Sums& a, const Sums& b) {
  const double max = b.max > a.max ? b.max : a.max;
  const bool later = b.best > a.best;
  return {max, rescale(a.sum, a.max, max) + rescale(b.sum, b.max, max), later ? b.best : a.best,
          later ? b.predicted : a.predicted};
}

struct Normalizer {
  double max, scale;  // m and exp(m - M) / (R + e); both 0 where there is no other class, or all are -inf
};

struct CrossEntropy {
  double loss;
  double slope;  // in the target's logit
  Normalizer normalizer;
};

LSOFTMAX_INLINE CrossEntropy cross_entropy(const Sums& others, double target) {
  const bool leads = !(others.max > target);
  const double max = leads ? target : others.max;
  const double rest = rescale(others.sum, others.max, max), own = leads ? 1 + 0 * target : exp(target - max);
  const double loss = leads ? log1p(rest) + 0 * target : log(rest + own) + (max - target);
  const Normalizer normalizer = {others.max, rescale(1, others.max, max) / (rest + own)};
  return {loss, -rest / (rest + own), others.sum == 0 ? Normalizer{0, 0} : normalizer};
}

// The target's logit with its margin, and the derivatives of t in the geometry. Where the margin changes nothing this is
// the dense layer's logit.
template <typename T>
LSOFTMAX_INLINE TargetLogit<double> target_of(const Arguments<T>& args, double alpha, const Geometry& g) {
  return has_margin(args.margin, alpha, g.features_sq, g.weights_sq)
             ? target_logit(args.margin, alpha, g.dot, g.features_sq, g.weights_sq)
             : TargetLogit<double>{g.dot, 1, 0, 0};
}

// From the sums over a row's classes: loss[row], predicted[row] and, in units of grad_unit[row], geometry_grad[:, row] and
// target_grad[row]; returns the normalizer, in these units, too, whose scale is 0 without a target. `bias` is that of the target.
template <typename T>
LSOFTMAX_INLINE Normalizer finish_row(const Arguments<T>& args, double alpha, int64_t row, double bias,
                                      const Sums& sums) {
  args.predicted[row] = static_cast<int64_t>(sums.predicted);
  if (label_of(args.labels, row) < 0) {
    assign(args.loss[row], 0);
    args.target_grad[row] = 0;
    store(args.geometry_grad, args.rows, row, {0, 0, 0});
    if (args.grad_unit != nullptr) args.grad_unit[row] = 1;
    return {0, 0};
  }
  const Geometry g = geometry_of(args, row);
  const TargetLogit<double> t = target_of(args, alpha, g);
  CrossEntropy h = cross_entropy(sums, t.value + bias);
  if (args.grad_unit != nullptr) {
    const double lift =
        kHasGradUnit<T> ? grad_lift(h.normalizer.scale, -h.slope, g.features_sq, args.depth, args.rows) : 1;
    args.grad_unit[row] = static_cast<float>(1 / lift);
    h.slope *= lift;
    h.normalizer.scale *= lift;
  }
  assign(args.loss[row], h.loss);
  args.target_grad[row] = h.slope;
  store(args.geometry_grad, args.rows, row, {h.slope * t.d_dot, h.slope * t.d_features_sq, h.slope * t.d_weights_sq});
  return h.normalizer;
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_SOFTMAX_H_

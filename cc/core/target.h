// The target of one row, with its row's place in the arrays: what the row kernels of the CPU and of CUDA share.
//
// Each takes one row of a batch whose label and lambda have been checked (validate.h).
#ifndef LSOFTMAX_CORE_TARGET_H_
#define LSOFTMAX_CORE_TARGET_H_

#include "core/arguments.h"
#include "core/half.h"
#include "core/margin.h"

namespace lsoftmax {

// The geometry of one row, from [3, N].
struct Geometry {
  double dot, features_sq, weights_sq;
};

template <typename T>
LSOFTMAX_INLINE Geometry geometry_of(const Arguments<T>& args, int64_t row) {
  return {args.geometry[row], args.geometry[args.rows + row], args.geometry[2 * args.rows + row]};
}

template <typename T>
LSOFTMAX_INLINE Geometry geometry_grad_of(const Arguments<T>& args, int64_t row) {
  return {args.geometry_grad[row], args.geometry_grad[args.rows + row], args.geometry_grad[2 * args.rows + row]};
}

LSOFTMAX_INLINE void store(double* geometry, int64_t rows, int64_t row, const Geometry& g) {
  geometry[row] = g.dot;
  geometry[rows + row] = g.features_sq;
  geometry[2 * rows + row] = g.weights_sq;
}

// What comes down to the row's loss, as a factor of derivatives in units of grad_unit.
template <typename T>
LSOFTMAX_INLINE double loss_grad_of(const Arguments<T>& args, int64_t row) {
  const double grad = args.loss_grad != nullptr ? widen(args.loss_grad[row]) : 1;
  return args.grad_unit != nullptr ? grad * args.grad_unit[row] : grad;
}

// logits[row, y] = t
template <typename T>
LSOFTMAX_INLINE void patch_logit(const Arguments<T>& args, double alpha, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  const Geometry g = geometry_of(args, row);
  if (y < 0 || !has_margin(args.margin, alpha, g.features_sq, g.weights_sq)) return;
  assign(args.logits[row * args.classes + y],
         target_logit(args.margin, alpha, g.dot, g.features_sq, g.weights_sq).value);
}

// geometry_grad[:, row] = products_grad[row, y] dt, and that entry becomes 0.
template <typename T>
LSOFTMAX_INLINE void split_gradient(const Arguments<T>& args, double alpha, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  const Geometry g = geometry_of(args, row);
  Geometry grad = {0, 0, 0};
  if (y >= 0 && has_margin(args.margin, alpha, g.features_sq, g.weights_sq)) {
    const TargetLogit<double> t = target_logit(args.margin, alpha, g.dot, g.features_sq, g.weights_sq);
    T& entry = args.products_grad[row * args.classes + y];
    const double upstream = widen(entry);
    assign(entry, 0);
    grad = {upstream * t.d_dot, upstream * t.d_features_sq, upstream * t.d_weights_sq};
  }
  store(args.geometry_grad, args.rows, row, grad);
}

// cos_theta[row] and segment[row]; NaN and -1 without a target.
template <typename T>
LSOFTMAX_INLINE void measure_angle(const Arguments<T>& args, int64_t row) {
  const bool has_target = label_of(args.labels, row) >= 0;
  const Geometry g = geometry_of(args, row);
  const double c = cos_theta(g.dot, g.features_sq, g.weights_sq);
  args.cos_theta[row] = has_target ? c : static_cast<double>(NAN);
  args.segment[row] = has_target ? psi(args.margin, c).segment : -1;
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_TARGET_H_

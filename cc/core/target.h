// The target of one row, with its row's place in the arrays: what the row kernels of the CPU and of CUDA share.
//
// Each takes one row of a batch whose label and lambda have been checked (validate.h).
#ifndef LSOFTMAX_CORE_TARGET_H_
#define LSOFTMAX_CORE_TARGET_H_

#include "core/arguments.h"
#include "core/half.h"
#include "core/softmax.h"

namespace lsoftmax {

// Where a label is among `classes` classes that begin at class `first`: its column, or one of these.
constexpr int64_t kNone = -1;       // there is no target
constexpr int64_t kElsewhere = -2;  // the target is another class than these

LSOFTMAX_INLINE int64_t column_of(int64_t label, int64_t first, int64_t classes) {
  if (label < 0) return kNone;
  return first <= label && label - first < classes ? label - first : kElsewhere;
}
template <typename T>
LSOFTMAX_INLINE int64_t column_of(const Arguments<T>& args, int64_t row) {
  return column_of(label_of(args.labels, row), args.range.first, args.classes);
}

// How many classes there are, as far as the arguments tell.
template <typename T>
LSOFTMAX_INLINE int64_t all_classes(const Arguments<T>& args) {
  return args.range.count > 0 ? args.range.count : args.classes;
}

template <typename T>
LSOFTMAX_INLINE Geometry<double> geometry_of(const Arguments<T>& args, int64_t row) {
  return {args.geometry[row], args.geometry[args.rows + row], args.geometry[2 * args.rows + row]};
}

template <typename T>
LSOFTMAX_INLINE Geometry<double> geometry_grad_of(const Arguments<T>& args, int64_t row) {
  return {args.geometry_grad[row], args.geometry_grad[args.rows + row], args.geometry_grad[2 * args.rows + row]};
}

LSOFTMAX_INLINE Terms<double> terms_of(const double* terms) {
  return {terms[0], terms[1], terms[2], terms[3], terms[4], terms[5], terms[6]};
}

// The target's logit, without its bias, of a row of this geometry.
template <typename T>
LSOFTMAX_INLINE TargetLogit<double> target_logit_of(const Arguments<T>& args, double alpha, const Geometry<double>& g) {
  if (args.terms == nullptr) return target_logit(args.margin, alpha, g);
  return target_logit(args.margin, terms_of(args.terms), alpha, g);
}

// What the row's products are multiplied by to be logits, beside the classes' inverse norms.
template <typename T>
LSOFTMAX_INLINE double row_factor_of(const Arguments<T>& args, int64_t row) {
  if (args.class_factors == nullptr) return 1;
  const Terms<double> terms = terms_of(args.terms);
  // Without a target there is no geometry, and of the logits nothing is wanted but which is the largest.
  return label_of(args.labels, row) < 0 ? terms.scale : row_factor(args.margin, terms, args.geometry[args.rows + row]);
}

LSOFTMAX_INLINE void store(double* geometry, int64_t rows, int64_t row, const Geometry<double>& g) {
  geometry[row] = g.dot;
  geometry[rows + row] = g.features_sq;
  geometry[2 * rows + row] = g.weights_sq;
}

// The upstream gradient of the row's loss, as a factor of derivatives in units of grad_unit.
template <typename T>
LSOFTMAX_INLINE double loss_grad_of(const Arguments<T>& args, int64_t row) {
  const double grad = args.loss_grad != nullptr ? widen(args.loss_grad[row]) : 1;
  return args.grad_unit != nullptr ? grad * args.grad_unit[row] : grad;
}

// logits[row, y] = t
template <typename T>
LSOFTMAX_INLINE void patch_logit(const Arguments<T>& args, double alpha, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  const Geometry<double> g = geometry_of(args, row);
  if (y < 0 || (args.terms == nullptr && is_dense(args.margin, alpha, g))) return;
  assign(args.logits[row * args.classes + y], target_logit_of(args, alpha, g).value);
}

// geometry_grad[:, row] = products_grad[row, y] dt, and that entry becomes 0.
template <typename T>
LSOFTMAX_INLINE void split_gradient(const Arguments<T>& args, double alpha, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  const Geometry<double> g = geometry_of(args, row);
  const bool dense = args.terms == nullptr && is_dense(args.margin, alpha, g);
  if (y < 0 || dense) return store(args.geometry_grad, args.rows, row, {0, 0, 0});
  const Geometry<double> slope = target_logit_of(args, alpha, g).slope;
  T& entry = args.products_grad[row * args.classes + y];
  const double upstream = widen(entry);
  assign(entry, 0);
  store(args.geometry_grad, args.rows, row,
        {upstream * slope.dot, upstream * slope.features_sq, upstream * slope.weights_sq});
}

// cos_theta[row] and segment[row]; NaN and -1 without a target.
template <typename T>
LSOFTMAX_INLINE void measure_angle(const Arguments<T>& args, int64_t row) {
  const bool has_target = label_of(args.labels, row) >= 0;
  const Geometry<double> g = geometry_of(args, row);
  const double c = cos_theta(g);
  args.cos_theta[row] = has_target ? c : static_cast<double>(NAN);
  args.segment[row] = has_target ? static_cast<int32_t>(psi(args.margin, c).segment) : -1;
}

LSOFTMAX_INLINE Sums<double> no_sums() {
  return {-static_cast<double>(INFINITY), 0, -static_cast<double>(INFINITY), 0, 0};
}

template <typename T>
LSOFTMAX_INLINE Sums<double> sums_of(const Arguments<T>& args, int64_t row) {
  const double* const sums = args.sums + row;
  return {sums[0], sums[args.rows], sums[2 * args.rows], sums[3 * args.rows], sums[4 * args.rows]};
}

template <typename T>
LSOFTMAX_INLINE void store(const Arguments<T>& args, int64_t row, const Sums<double>& sums) {
  args.sums[row] = sums.max;
  args.sums[args.rows + row] = sums.sum;
  args.sums[2 * args.rows + row] = sums.best;
  args.sums[3 * args.rows + row] = sums.predicted;
  args.sums[4 * args.rows + row] = sums.total;
}

template <typename T>
LSOFTMAX_INLINE Normalizer<double> normalizer_of(const Arguments<T>& args, int64_t row) {
  return {args.normalizer[row], args.normalizer[args.rows + row], args.normalizer[2 * args.rows + row]};
}

template <typename T>
LSOFTMAX_INLINE void store(const Arguments<T>& args, int64_t row, const Normalizer<double>& normalizer) {
  args.normalizer[row] = normalizer.max;
  args.normalizer[args.rows + row] = normalizer.scale;
  args.normalizer[2 * args.rows + row] = normalizer.addend;
}

// From the sums over a row's classes: loss[row], predicted[row] and, in units of grad_unit[row], geometry_grad[:, row]
// and target_grad[row]; returns the normalizer, in these units, too, whose scale is 0 without a target. `t` is the
// target's logit, `bias` is to be added to it. Without `stores` it returns the normalizer alone.
template <typename T>
LSOFTMAX_INLINE Normalizer<double> finish_row(const Arguments<T>& args, const TargetLogit<double>& t, int64_t row,
                                              double bias, const Sums<double>& sums, bool stores = true) {
  Finished<double> f = {0, 0, {0, 0, 0}, {0, 0, 0}, 1};
  if (label_of(args.labels, row) >= 0) {
    const bool has_unit = kHasGradUnit<T> && args.grad_unit != nullptr;
    const double depth = static_cast<double>(args.depth);
    const auto finished = [&](const Terms<double>* terms) {
      return finish(args.margin, terms, t, geometry_of(args, row), bias, sums, depth, args.rows, has_unit);
    };
    if (args.terms != nullptr) {
      const Terms<double> terms = terms_of(args.terms);
      f = finished(&terms);
    } else {
      f = finished(nullptr);
    }
  }
  if (!stores) return f.normalizer;
  args.predicted[row] = static_cast<int64_t>(sums.predicted);
  assign(args.loss[row], f.loss);
  args.target_grad[row] = f.target_grad;
  store(args.geometry_grad, args.rows, row, f.geometry_grad);
  if (args.grad_unit != nullptr) args.grad_unit[row] = static_cast<float>(f.unit);
  return f.normalizer;
}
template <typename T>
LSOFTMAX_INLINE Normalizer<double> finish_row(const Arguments<T>& args, double alpha, int64_t row, double bias,
                                              const Sums<double>& sums) {
  return finish_row(args, target_logit_of(args, alpha, geometry_of(args, row)), row, bias, sums);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_TARGET_H_

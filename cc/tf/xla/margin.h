// core/margin.h, target.h and softmax.h in HLO: the same formulas, of all rows of a batch at once.
//
// Everything is a vector [N] of F64 unless said otherwise.
#ifndef LSOFTMAX_TF_XLA_MARGIN_H_
#define LSOFTMAX_TF_XLA_MARGIN_H_

#include "tf/xla/hlo.h"

namespace lsoftmax {
namespace hlo {

struct Geometry {
  XlaOp dot, features_sq, weights_sq;
};
Geometry geometry_of(XlaOp geometry, int64_t rows);  // from [3, N]
Geometry geometry_between(const Targets& targets, XlaOp features,
                          XlaOp target_weights);  // of [N, D] both; 0 without a target
XlaOp matrix_of(const Geometry& geometry, int64_t rows);
Geometry operator*(XlaOp factor, const Geometry& geometry);

XlaOp cos_theta(const Geometry& geometry);

// psi and its derivative at c = cos(theta), and the segment.
struct Psi {
  XlaOp value, slope, segment;
};
Psi psi(int margin, XlaOp c);

// The target's logit without its bias, and its derivatives in the geometry: the dense layer's where there is no margin.
struct TargetLogit {
  XlaOp value;
  Geometry slope;
  XlaOp has_margin;  // PRED
};
TargetLogit target_logit(int margin, XlaOp lambda, const Geometry& geometry);

// PRED: the label is neither -1 nor a class, or lambda is no number >= 0, so that the row is to be NaN.
XlaOp is_lost(const Targets& targets, XlaOp lambda);

struct Sums {
  XlaOp max, sum, best, predicted;
};
Sums sums_of(XlaOp sums, int64_t rows);  // from [4, N]
XlaOp matrix_of(const Sums& sums, int64_t rows);
Sums merge(const Sums& a, const Sums& b);

// exp(logits - max) of all classes but the target, 0 there; [N, classes], in the type that logits are computed in.
XlaOp exponentials(const Targets& targets, XlaOp logits, XlaOp max);

// Of the plain logits; and the exponentials that are in the sum, for those who want them.
Sums sum_up(const Targets& targets, XlaOp logits, XlaOp* exponentials = nullptr);

// The loss, its derivative in the target's logit, and the row's normalizer.
struct CrossEntropy {
  XlaOp loss, slope, max, scale;
};
CrossEntropy cross_entropy(const Sums& others, XlaOp target);

// 1 / u of core/grad_unit.h, from the largest of the other classes' probabilities and their sum; `depth` is F64 [].
XlaOp grad_lift(XlaOp largest, XlaOp rest, XlaOp features_sq, XlaOp depth, int64_t rows);

// finish_row of core/softmax.h: what a loss and its gradient are made of, from the sums; `depth` is F64 [].
struct Finished {
  XlaOp loss;
  Geometry geometry_grad;
  XlaOp target_grad, max, scale, grad_unit;
};
Finished finish(const Targets& targets, int margin, XlaOp lambda, const Geometry& geometry, XlaOp depth,
                XlaOp target_bias, const Sums& sums, bool has_grad_unit);

// The class of the largest plain logit, S64.
XlaOp class_of(const Sums& sums);

// The exponentials times the row's scale, 0 where that is 0.
XlaOp products_grad(const Targets& targets, XlaOp exponentials, XlaOp scale);

}  // namespace hlo
}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_MARGIN_H_

// The formulas of core/margin.h and core/softmax.h over the arrays of a batch in HLO: what reads and packs these, and
// what runs over classes. A number a row is a vector [N] of F64 unless said otherwise.
#ifndef LSOFTMAX_TF_XLA_MARGIN_H_
#define LSOFTMAX_TF_XLA_MARGIN_H_

#include <optional>

#include "core/softmax.h"
#include "tf/xla/rows.h"

namespace lsoftmax {
namespace hlo {

Geometry<Rows> geometry_of(XlaOp geometry, int64_t rows);  // from [3, N]
Geometry<Rows> geometry_between(const Targets& targets, XlaOp features,
                                XlaOp target_weights);  // of [N, D] both; 0 without a target
XlaOp matrix_of(const Geometry<Rows>& geometry, int64_t rows);
Geometry<Rows> operator*(Rows factor, const Geometry<Rows>& geometry);

// Of a margin that may have terms.
TargetLogit<Rows> target_logit_of(const Margin& margin, const std::optional<Terms<Rows>>& terms, XlaOp alpha,
                                  const Geometry<Rows>& geometry);

// PRED: the label is neither -1 nor a class, or lambda is no number >= 0, so that the row is to be NaN.
XlaOp is_lost(const Targets& targets, XlaOp lambda);

Sums<Rows> sums_of(XlaOp sums, int64_t rows);  // from [5, N]
XlaOp matrix_of(const Sums<Rows>& sums, int64_t rows);

// exp(logits - max) of all classes but the target, 0 there; [N, classes], in the type that logits are computed in.
XlaOp exponentials(const Targets& targets, XlaOp logits, XlaOp max);

// Of the plain logits; and the exponentials that are in the sum, for those who want them.
Sums<Rows> sum_up(const Targets& targets, const std::optional<Terms<Rows>>& terms, XlaOp logits,
                  XlaOp* exponentials = nullptr);

// finish_row of core/target.h: NaN in rows that are lost, 0 (and the unit 1) without a target.
Finished<Rows> finish_rows(const Targets& targets, const Margin& margin, const std::optional<Terms<Rows>>& terms,
                           XlaOp lambda, const Geometry<Rows>& geometry, XlaOp target_bias, const Sums<Rows>& sums,
                           XlaOp depth, bool has_unit);

// The class of the largest plain logit, S64.
XlaOp class_of(const Sums<Rows>& sums);

Normalizer<Rows> normalizer_of(XlaOp normalizer, int64_t rows);  // from [3, N]
XlaOp matrix_of(const Normalizer<Rows>& normalizer, int64_t rows);

// The exponentials times the row's scale, 0 where that is 0; if the margin has terms, plus the row's addend, and times
// the factors [classes] of the classes, if they have some.
XlaOp products_grad(const Targets& targets, XlaOp exponentials, const Normalizer<Rows>& normalizer, bool has_terms,
                    bool has_unit, const std::optional<XlaOp>& class_factors);

}  // namespace hlo
}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_MARGIN_H_

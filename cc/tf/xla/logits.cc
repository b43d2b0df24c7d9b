// Logits and its gradient in HLO; the formulas are in the ops' own file.
#include <limits>

#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct MarginLogits {
  explicit MarginLogits(const Node& node)
      : targets(node.targets()),
        geometry(geometry_of(node.in("geometry"), node.sizes.rows())),
        alpha(margin_share<Rows>(node.in("lam"))),
        target(target_logit_of(node.margin, node.terms(), alpha, geometry)),
        dense(node.has("terms") ? ::xla::Broadcast(::xla::ConstantR0(node.context->builder(), false), {targets.rows})
                                : is_dense(node.margin, alpha, geometry).op),
        lost(is_lost(targets, node.in("lam"))) {}

  // The matrix with `values` [N] at the targets that have a margin, and NaN in the rows that are lost.
  XlaOp patched(XlaOp matrix, XlaOp values) const {
    const auto in_row = [this](XlaOp vector) { return as_columns(vector, targets.rows, targets.classes); };
    const XlaOp replaced = ::xla::And(is_target(targets), ::xla::Not(dense), kByRow);
    const XlaOp rows = where(replaced, in_row(to_type_of(matrix, values)), matrix);
    return where(in_row(lost), kNan, rows);
  }

  const Targets targets;
  const Geometry<Rows> geometry;
  const Rows alpha;
  const TargetLogit<Rows> target;
  const XlaOp dense;  // PRED, [N]: the margin, which has no terms, changes nothing
  const XlaOp lost;   // PRED, [N]
};

absl::Status logits(const Node& node) {
  const MarginLogits rows(node);
  node.out("logits", rows.patched(node.in("products"), rows.target.value));
  return absl::Status();
}

absl::Status logits_grad(const Node& node) {
  const MarginLogits rows(node);
  const XlaOp gradient = node.in("logits_grad"), own = to_double(entry_at(rows.targets, gradient));
  const XlaOp upstream = where(rows.lost, kNan, where(rows.dense, 0, own));
  node.out("products_grad", rows.patched(gradient, ::xla::Broadcast(number(own, 0), {node.sizes.rows()})));
  node.out("geometry_grad", matrix_of(upstream * rows.target.slope, node.sizes.rows()));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxLogits", call_or_formula<kLogitsCall, logits>);
LSOFTMAX_REGISTER_XLA("LsoftmaxLogitsGrad", call_or_formula<kLogitsGradCall, logits_grad>);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

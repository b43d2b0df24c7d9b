// Logits and its gradient in HLO; the formulas are in the ops' own file.
#include <limits>

#include "tf/xla/kernel.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Rows {
  explicit Rows(const Node& node)
      : targets(node.targets()),
        target(target_logit(node.margin, node.in("lam"), geometry_of(node.in("geometry"), node.sizes.rows()))),
        lost(is_lost(targets, node.in("lam"))) {}

  // The matrix with `values` [N] at the targets that have a margin, and NaN in the rows that are lost.
  XlaOp patched(XlaOp matrix, XlaOp values) const {
    const auto in_row = [this](XlaOp vector) { return as_columns(vector, targets.rows, targets.classes); };
    const XlaOp replaced = ::xla::And(is_target(targets), target.has_margin, kByRow);
    const XlaOp rows = where(replaced, in_row(to_type_of(matrix, values)), matrix);
    return where(in_row(lost), kNan, rows);
  }

  const Targets targets;
  const TargetLogit target;
  const XlaOp lost;
};

absl::Status logits(const Node& node) {
  const Rows rows(node);
  node.out("logits", rows.patched(node.in("products"), rows.target.value));
  return absl::Status();
}

absl::Status logits_grad(const Node& node) {
  const Rows rows(node);
  const XlaOp gradient = node.in("logits_grad"), own = to_double(entry_at(rows.targets, gradient));
  const XlaOp upstream = where(rows.lost, kNan, where(rows.target.has_margin, own, 0));
  node.out("products_grad", rows.patched(gradient, ::xla::Broadcast(number(own, 0), {node.sizes.rows()})));
  node.out("geometry_grad", matrix_of(upstream * rows.target.slope, node.sizes.rows()));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxLogits", logits);
LSOFTMAX_REGISTER_XLA("LsoftmaxLogitsGrad", logits_grad);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

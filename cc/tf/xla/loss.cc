// The ops of the fused loss in HLO; the formulas are in core/softmax.h and in the ops' own file.
#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

absl::Status loss(const Node& node) {
  const Targets targets = node.targets();
  const XlaOp products = node.in("products"), w = node.target_weights(targets);
  const Geometry<Rows> geometry = geometry_between(targets, node.in("features"), w);
  const XlaOp plain = node.plain_logits(targets, products, matrix_of(geometry, node.sizes.rows()));
  const std::optional<Terms<Rows>> terms = node.terms();
  XlaOp e;
  const Sums<Rows> sums = sum_up(targets, terms, plain, &e);
  const XlaOp depth = node.constant(static_cast<double>(node.sizes.depth()));
  const Finished<Rows> row = finish_rows(targets, node.margin, terms, node.in("lam"), geometry,
                                         node.target_bias(targets), sums, depth, node.has_grad_unit());
  node.out("loss", to_type_of(products, row.loss));
  const XlaOp gradient = products_grad(targets, e, row.normalizer, node.has("terms"), node.has_grad_unit(),
                                       node.in_if_any("class_factors"));
  node.out("products_grad", to_type_of(products, gradient));
  node.out("geometry", matrix_of(geometry, node.sizes.rows()));
  node.out("geometry_grad", matrix_of(row.geometry_grad, node.sizes.rows()));
  node.out("target_grad", row.target_grad);
  node.out("target_weights", w);
  node.out("predicted", class_of(sums));
  node.out("grad_unit", row.unit);
  return absl::Status();
}

absl::Status bias_grad(const Node& node) {
  const Targets targets = node.targets_of_block();
  const XlaOp products_grad = node.block("products_grad"), wide = widen(products_grad), h = node.upstream();
  const XlaOp own = as_columns(to_type_of(wide, node.in("target_grad")), targets.rows, targets.classes);
  const XlaOp whole = wide + where(is_target(targets), own, 0);
  const XlaOp scaled = node.has("loss_grad") ? ::xla::Mul(whole, h, kByRow) : whole;
  node.out("bias_grad", to_type_of(products_grad, sum_over(0, scaled)));
  return absl::Status();
}

absl::Status same(const Node& node) {
  node.context->SetOutput(0, node.context->Input(node.signature().outputs()[0].same));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxLoss", call_or_formula<kLossCall, loss>);
LSOFTMAX_REGISTER_XLA("LsoftmaxLossWithGradient", same);
LSOFTMAX_REGISTER_XLA("LsoftmaxLossGradient", same);
LSOFTMAX_REGISTER_XLA("LsoftmaxBiasGrad", written_or_formula<kBiasGradCall, write_bias_grad, bias_grad>);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

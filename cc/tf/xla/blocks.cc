// The ops of the fused loss over blocks of classes in HLO; the formulas are in core/softmax.h and in the ops' own file.
#include <limits>

#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

absl::Status sums(const Node& node) {
  const Targets targets = node.targets_of_block();
  const XlaOp plain = node.plain_logits(targets, node.block("products"), node.in("geometry"));
  Sums<Rows> sums = sum_up(targets, node.terms(), plain);
  sums.predicted = sums.predicted + Rows(to_double(node.in("first_class")));
  const Sums<Rows> all = merge(sums_of(node.in("sums_before"), node.sizes.rows()), sums);
  node.out("sums", matrix_of(all, node.sizes.rows()));
  return absl::Status();
}

absl::Status finish(const Node& node) {
  const int64_t rows = node.sizes.rows();
  // Without a bias nothing tells the number of classes; a label beyond them has made its geometry NaN.
  const int64_t classes = node.has("bias") ? node.sizes.classes() : std::numeric_limits<int32_t>::max();
  const Targets targets = targets_of(node.in("labels"), rows, classes);
  const Sums<Rows> sums = sums_of(node.in("sums"), rows);
  const Geometry<Rows> geometry = geometry_of(node.in("geometry"), rows);
  const Finished<Rows> row =
      finish_rows(targets, node.margin, node.terms(), node.in("lam"), geometry, node.target_bias(targets), sums,
                  to_double(node.in("depth")), node.has_grad_unit());
  node.out("loss", ::xla::ConvertElementType(row.loss, node.context->output_xla_type(0)));
  node.out("normalizer", matrix_of(row.normalizer, rows));
  node.out("geometry_grad", matrix_of(row.geometry_grad, rows));
  node.out("target_grad", row.target_grad);
  node.out("predicted", class_of(sums));
  node.out("grad_unit", row.unit);
  return absl::Status();
}

absl::Status products_grad(const Node& node) {
  const Targets targets = node.targets_of_block();
  const XlaOp products = node.block("products"), plain = node.plain_logits(targets, products, node.in("geometry"));
  const Normalizer<Rows> normalizer = normalizer_of(node.in("normalizer"), targets.rows);
  const XlaOp e = exponentials(targets, plain, to_type_of(plain, normalizer.max));
  const XlaOp gradient = hlo::products_grad(targets, e, normalizer, node.has("terms"), node.has_grad_unit(),
                                            node.in_if_any("class_factors"));
  node.out("products_grad", to_type_of(products, gradient));
  return absl::Status();
}

// XLA's own update in place.
XlaOp updated(const Node& node, XlaOp block, XlaOp first) {
  const XlaOp none = number(first, 0);
  std::vector<XlaOp> begin = {none, first};
  if (node.class_major()) begin = {first, none};
  return ::xla::DynamicUpdateSlice(node.in("matrix"), block, begin);
}

// A block that does not fit goes as near to its place as XLA finds room, as NaNs.
absl::Status set_columns(const Node& node) {
  const int64_t count = node.sizes.block(), width = node.sizes.classes();
  if (count > width) return check_first("first_column", 0, count, width);  // it fits nowhere
  const XlaOp first = node.in("first_column");
  const XlaOp block = where(is_first(first, count, width), node.in("block"), std::numeric_limits<double>::quiet_NaN());
  node.out("new_matrix", updated(node, block, first));
  return absl::Status();
}

// A call takes the number of features from the host, where XLA knows it.
absl::Status finish_by_call_or_formula(const Node& node) {
  int64_t depth = 0;
  const bool known = node.context->ConstantInputAsIntScalar("depth", &depth).ok();
  return known && can_call(node, kFinishCall.handler) ? write_finish(node, depth) : finish(node);
}

absl::Status set_columns_by_call_or_formula(const Node& node) {
  if (!can_call(node, kFirstColumnHandler)) return set_columns(node);
  XlaOp first;
  TF_RETURN_IF_ERROR(write_first_column(node, &first));
  node.out("new_matrix", updated(node, node.in("block"), first));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxSums", written_or_formula<kSumsCall, write_sums, sums>);
LSOFTMAX_REGISTER_XLA("LsoftmaxFinish", finish_by_call_or_formula);
LSOFTMAX_REGISTER_XLA("LsoftmaxProductsGrad",
                      written_or_formula<kProductsGradCall, write_products_grad, products_grad>);
LSOFTMAX_REGISTER_XLA("LsoftmaxSetColumns", set_columns_by_call_or_formula);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

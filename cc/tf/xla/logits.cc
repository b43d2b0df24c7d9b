// Logits and its gradient in HLO; the formulas are in the ops' own files.
#include <limits>

#include "tf/xla/kernel.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Inputs {
  Rows rows;
  TargetLogit target;
  XlaOp is_lost;
};

absl::Status read_inputs(XlaOpKernelContext* context, const char* matrix, int margin, Inputs* inputs) {
  XlaOp geometry, lambda;
  TF_RETURN_IF_ERROR(read_rows(context, matrix, &inputs->rows));
  const Targets& targets = inputs->rows.targets;
  TF_RETURN_IF_ERROR(read(context, "geometry", {3, targets.rows}, &geometry));
  TF_RETURN_IF_ERROR(read(context, "lam", {}, &lambda));
  inputs->target = target_logit(margin, lambda, geometry_of(geometry, targets.rows));
  inputs->is_lost = is_lost(targets, lambda);
  return absl::Status();
}

// The matrix with `values` [N] at the targets that have a margin, and NaN in the rows that are lost.
XlaOp patched(const Inputs& inputs, XlaOp values) {
  const auto& [matrix, targets] = inputs.rows;
  const auto in_row = [&, n = targets.rows, c = targets.classes](XlaOp vector) { return as_columns(vector, n, c); };
  const XlaOp replaced = ::xla::And(is_target(targets), inputs.target.has_margin, kByRow);
  const XlaOp rows = where(replaced, in_row(to_type_of(matrix, values)), matrix);
  return where(in_row(inputs.is_lost), kNan, rows);
}

absl::Status logits(XlaOpKernelContext* context, int margin) {
  Inputs inputs;
  TF_RETURN_IF_ERROR(read_inputs(context, "products", margin, &inputs));
  context->SetOutput(0, patched(inputs, inputs.target.value));
  return absl::Status();
}

absl::Status logits_grad(XlaOpKernelContext* context, int margin) {
  Inputs inputs;
  TF_RETURN_IF_ERROR(read_inputs(context, "logits_grad", margin, &inputs));
  const auto& [gradient, targets] = inputs.rows;
  const XlaOp own = to_double(entry_at(targets, gradient));
  const XlaOp upstream = where(inputs.is_lost, kNan, where(inputs.target.has_margin, own, 0));
  context->SetOutput(0, patched(inputs, ::xla::Broadcast(number(own, 0), {targets.rows})));
  context->SetOutput(1, matrix_of(upstream * inputs.target.slope, targets.rows));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxLogits", logits);
LSOFTMAX_REGISTER_XLA("LsoftmaxLogitsGrad", logits_grad);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

// The ops of the fused loss in HLO; the formulas are in core/softmax.h and in the ops' own files.
#include <limits>

#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// finish_row of core/softmax.h.
struct Finished {
  XlaOp loss;
  Geometry geometry_grad;
  XlaOp target_grad, max, scale, grad_unit;
};
Finished finish(XlaOpKernelContext* context, const Targets& targets, int margin, XlaOp lambda, const Geometry& geometry,
                XlaOp depth, XlaOp target_bias, const Sums& sums) {
  const XlaOp lost = is_lost(targets, lambda);
  const TargetLogit t = target_logit(margin, lambda, geometry);
  const CrossEntropy h = cross_entropy(sums, t.value + target_bias);
  const auto of_row = [&](XlaOp value) { return where(lost, kNan, where(targets.none, 0, value)); };
  XlaOp lift = where(targets.none, 1, number(h.slope, 1));  // 1 in every row
  if (context->output_xla_type(0) == ::xla::F16) {
    const XlaOp wanted = grad_lift(h.scale, -h.slope, geometry.features_sq, depth, targets.rows);
    lift = where(Or(lost, targets.none), 1, wanted);
  }
  const XlaOp slope = of_row(h.slope * lift);
  const Geometry grad = slope * t.slope;
  return {of_row(h.loss),
          {of_row(grad.dot), of_row(grad.features_sq), of_row(grad.weights_sq)},
          slope,
          of_row(h.max),
          of_row(h.scale * lift),
          ::xla::ConvertElementType(number(lift, 1) / lift, ::xla::F32)};
}

XlaOp class_of(const Sums& sums) { return ::xla::ConvertElementType(sums.predicted, ::xla::S64); }

absl::Status loss(XlaOpKernelContext* context, int margin) {
  Layer layer;
  XlaOp products;
  TF_RETURN_IF_ERROR(read_layer(context, &layer));
  const auto& [batch, bias, lambda] = layer;
  const Targets& targets = batch.targets;
  TF_RETURN_IF_ERROR(read(context, "products", {targets.rows, targets.classes}, &products));

  const XlaOp w = column_at(targets, batch.weights, batch.depth);
  const Geometry geometry = geometry_between(targets, batch.features, w);
  const XlaOp plain = bias.added_to(products);
  XlaOp e;
  const Sums sums = sum_up(targets, plain, &e);
  const XlaOp depth = ::xla::ConstantR0<double>(context->builder(), static_cast<double>(batch.depth));
  const Finished row = finish(context, targets, margin, lambda, geometry, depth, bias.of_target(targets), sums);
  context->SetOutput(0, to_type_of(products, row.loss));
  context->SetOutput(1, to_type_of(products, products_grad(targets, e, row.scale)));
  context->SetOutput(2, matrix_of(geometry, targets.rows));
  context->SetOutput(3, matrix_of(row.geometry_grad, targets.rows));
  context->SetOutput(4, row.target_grad);
  context->SetOutput(5, w);
  context->SetOutput(6, class_of(sums));
  context->SetOutput(7, row.grad_unit);
  return absl::Status();
}

absl::Status loss_of_sums(XlaOpKernelContext* context, int margin) {
  Bias bias;
  XlaOp labels, sums, geometry, lambda, depth;
  TF_RETURN_IF_ERROR(read(context, "labels", {-1}, &labels));
  const int64_t rows = context->InputShape("labels").dim_size(0);
  TF_RETURN_IF_ERROR(read(context, "sums", {4, rows}, &sums));
  TF_RETURN_IF_ERROR(read(context, "geometry", {3, rows}, &geometry));
  TF_RETURN_IF_ERROR(read(context, "lam", {}, &lambda));
  TF_RETURN_IF_ERROR(read(context, "depth", {}, &depth));
  TF_RETURN_IF_ERROR(read_bias(context, -1, &bias));
  // Without a bias nothing tells the number of classes; a label beyond them has made its geometry NaN.
  const int64_t classes = bias.is_there ? context->InputShape("bias").dim_size(0) : std::numeric_limits<int32_t>::max();
  const Targets targets = targets_of(labels, rows, classes);
  const Sums of_row = sums_of(sums, rows);
  const Finished row = finish(context, targets, margin, lambda, geometry_of(geometry, rows), to_double(depth),
                              bias.of_target(targets), of_row);
  context->SetOutput(0, ::xla::ConvertElementType(row.loss, context->output_xla_type(0)));
  context->SetOutput(1, lsoftmax::matrix_of({row.max, row.scale}, rows));
  context->SetOutput(2, matrix_of(row.geometry_grad, rows));
  context->SetOutput(3, row.target_grad);
  context->SetOutput(4, class_of(of_row));
  context->SetOutput(5, row.grad_unit);
  return absl::Status();
}

absl::Status log_sum_exp(XlaOpKernelContext* context, int) {
  Rows block;
  Bias bias;
  XlaOp before;
  TF_RETURN_IF_ERROR(read_block(context, "products", &block));
  const Targets& targets = block.targets;
  TF_RETURN_IF_ERROR(read_bias(context, targets.classes, &bias));
  TF_RETURN_IF_ERROR(read(context, "sums", {4, targets.rows}, &before));
  Sums sums = sum_up(targets, bias.added_to(block.matrix));
  sums.predicted = sums.predicted + to_double(context->Input("first_class"));
  context->SetOutput(0, matrix_of(merge(sums_of(before, targets.rows), sums), targets.rows));
  return absl::Status();
}

absl::Status products_grad_of_block(XlaOpKernelContext* context, int) {
  Rows block;
  Bias bias;
  XlaOp normalizer;
  TF_RETURN_IF_ERROR(read_block(context, "products", &block));
  const auto& [products, targets] = block;
  TF_RETURN_IF_ERROR(read_bias(context, targets.classes, &bias));
  TF_RETURN_IF_ERROR(read(context, "normalizer", {2, targets.rows}, &normalizer));
  const XlaOp max = row_of(normalizer, 0, targets.rows), scale = row_of(normalizer, 1, targets.rows);
  const XlaOp plain = bias.added_to(products);
  const XlaOp e = exponentials(targets, plain, to_type_of(plain, max));
  context->SetOutput(0, to_type_of(products, products_grad(targets, e, scale)));
  return absl::Status();
}

absl::Status bias_grad(XlaOpKernelContext* context, int) {
  Rows block;
  XlaOp loss_grad, target_grad;
  TF_RETURN_IF_ERROR(read_block(context, "products_grad", &block));
  const auto& [products_grad, targets] = block;
  TF_RETURN_IF_ERROR(read_loss_grad(context, targets.rows, &loss_grad));
  TF_RETURN_IF_ERROR(read(context, "target_grad", {targets.rows}, &target_grad));
  const XlaOp wide = widen(products_grad);
  const XlaOp own = as_columns(to_type_of(wide, target_grad), targets.rows, targets.classes);
  const XlaOp whole = wide + where(is_target(targets), own, 0);
  context->SetOutput(0, to_type_of(products_grad, sum_over(0, ::xla::Mul(whole, loss_grad, kByRow))));
  return absl::Status();
}

absl::Status loss_with_gradient(XlaOpKernelContext* context, int) {
  int64_t class_block_size = 0;
  const auto& node = context->op_kernel_context()->op_kernel().def();
  TF_RETURN_IF_ERROR(tensorflow::GetNodeAttr(node, "class_block_size", &class_block_size));
  TF_RETURN_IF_ERROR(check_loss_with_gradient(shapes_of(context), class_block_size));
  context->SetOutput(0, context->Input("value"));
  return absl::Status();
}

absl::Status loss_bias_grad(XlaOpKernelContext* context, int) {
  TF_RETURN_IF_ERROR(check_loss_bias_grad(shapes_of(context)));
  context->SetOutput(0, context->Input("value"));
  return absl::Status();
}

// A block that does not fit goes as near to its place as XLA finds room, as NaNs.
absl::Status set_columns(XlaOpKernelContext* context, int) {
  Columns columns;
  TF_RETURN_IF_ERROR(read_columns(context, &columns));
  const auto& [matrix, block, first, count, width] = columns;
  const XlaOp seen = where(is_first(first, count, width), block, kNan);
  context->SetOutput(0, ::xla::DynamicUpdateSlice(matrix, seen, {number(first, 0), first}));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA_ON("CPU", "LsoftmaxLoss", call_or_formula<call_loss, loss>);
LSOFTMAX_REGISTER_XLA_ON("GPU", "LsoftmaxLoss", loss);
LSOFTMAX_REGISTER_XLA("LsoftmaxLossOfSums", loss_of_sums);
LSOFTMAX_REGISTER_XLA("LsoftmaxLogSumExp", log_sum_exp);
LSOFTMAX_REGISTER_XLA("LsoftmaxProductsGrad", products_grad_of_block);
LSOFTMAX_REGISTER_XLA("LsoftmaxBiasGrad", bias_grad);
LSOFTMAX_REGISTER_XLA("LsoftmaxLossWithGradient", loss_with_gradient);
LSOFTMAX_REGISTER_XLA("LsoftmaxLossBiasGrad", loss_bias_grad);
LSOFTMAX_REGISTER_XLA_ON("CPU", "LsoftmaxSetColumns", call_or_formula<call_set_columns, set_columns>);
LSOFTMAX_REGISTER_XLA_ON("GPU", "LsoftmaxSetColumns", set_columns);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

// TargetGeometry, the gradients that go back through it, and TargetAngles in HLO; the formulas are in the ops' own files.
#include <limits>

#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

absl::Status target_geometry(XlaOpKernelContext* context, int) {
  Batch batch;
  TF_RETURN_IF_ERROR(read_batch(context, &batch));
  const XlaOp w = column_at(batch.targets, batch.weights, batch.depth);
  context->SetOutput(0, batch.features);
  context->SetOutput(1, batch.weights);
  context->SetOutput(2, matrix_of(geometry_between(batch.targets, batch.features, w), batch.targets.rows));
  return absl::Status();
}

absl::Status target_angles(XlaOpKernelContext* context, int margin) {
  XlaOp labels, geometry;
  TF_RETURN_IF_ERROR(read(context, "labels", {-1}, &labels));
  const int64_t rows = context->InputShape("labels").dim_size(0);
  TF_RETURN_IF_ERROR(read(context, "geometry", {3, rows}, &geometry));
  const XlaOp has_target = ::xla::Ge(labels, number(labels, 0));
  const XlaOp c = cos_theta(geometry_of(geometry, rows));
  const XlaOp segment = ::xla::ConvertElementType(psi(margin, c).segment, ::xla::S32);
  context->SetOutput(0, where(has_target, c, std::numeric_limits<double>::quiet_NaN()));
  context->SetOutput(1, where(has_target, segment, -1));
  return absl::Status();
}

// What comes down to a batch's geometry, times what comes down to its loss, and the weights that it is about.
struct Upstream {
  Geometry geometry;
  XlaOp loss;            // [N], or [] without a loss: 1
  XlaOp target_weights;  // [N, D]
};

absl::Status read_upstream(XlaOpKernelContext* context, const Batch& batch, bool of_loss, Upstream* upstream) {
  const int64_t rows = batch.targets.rows;
  XlaOp geometry_grad, loss_grad = ::xla::ConstantR0<double>(context->builder(), 1);
  TF_RETURN_IF_ERROR(read(context, "geometry_grad", {3, rows}, &geometry_grad));
  if (of_loss) TF_RETURN_IF_ERROR(read_loss_grad(context, rows, &loss_grad));
  upstream->loss = to_double(loss_grad);
  upstream->geometry = upstream->loss * geometry_of(geometry_grad, rows);
  if (of_loss) {
    Layer layer;
    TF_RETURN_IF_ERROR(read_layer(context, &layer));
    TF_RETURN_IF_ERROR(check_target_weights(context->InputShape("target_weights"), rows, batch.depth));
    upstream->target_weights = context->Input("target_weights");
    if (context->InputShape("target_weights") == tensorflow::TensorShape({rows, batch.depth})) return absl::Status();
  }
  upstream->target_weights = column_at(batch.targets, batch.weights, batch.depth);
  return absl::Status();
}

// factor a, row by row, in double.
XlaOp times(XlaOp a, XlaOp factor) { return ::xla::Mul(to_double(a), factor, kByRow); }

template <bool kOfLoss>
absl::Status features_grad(XlaOpKernelContext* context, int) {
  Batch batch;
  XlaOp products;
  Upstream upstream;
  TF_RETURN_IF_ERROR(read_batch(context, &batch));
  const Targets& targets = batch.targets;
  TF_RETURN_IF_ERROR(read(context, "products_features_grad", {targets.rows, batch.depth}, &products));
  TF_RETURN_IF_ERROR(read_upstream(context, batch, kOfLoss, &upstream));
  const Geometry& g = upstream.geometry;
  const XlaOp share = times(upstream.target_weights, g.dot) + times(batch.features, g.features_sq + g.features_sq);
  const XlaOp scaled = kOfLoss ? times(products, upstream.loss) : to_double(products);
  const XlaOp here = as_columns(targets.here, targets.rows, batch.depth);
  context->SetOutput(0, where(here, to_type_of(products, scaled + share), to_type_of(products, scaled)));
  return absl::Status();
}

template <bool kOfLoss>
absl::Status weights_grad(XlaOpKernelContext* context, int) {
  Batch batch;
  XlaOp products;
  Upstream upstream;
  TF_RETURN_IF_ERROR(read_batch(context, &batch));
  const Targets& targets = batch.targets;
  TF_RETURN_IF_ERROR(read(context, "products_weights_grad", {batch.depth, targets.classes}, &products));
  TF_RETURN_IF_ERROR(read_upstream(context, batch, kOfLoss, &upstream));
  const Geometry& g = upstream.geometry;
  const XlaOp share = times(batch.features, g.dot) + times(upstream.target_weights, g.weights_sq + g.weights_sq);
  const XlaOp here = as_columns(targets.here, targets.rows, batch.depth);
  const XlaOp rows = to_type_of(widen(products), where(here, share, 0));
  context->SetOutput(0, add_to_columns(targets, products, rows, batch.depth));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxTargetGeometry", target_geometry);
LSOFTMAX_REGISTER_XLA("LsoftmaxTargetAngles", target_angles);
LSOFTMAX_REGISTER_XLA("LsoftmaxFeaturesGrad", features_grad<false>);
LSOFTMAX_REGISTER_XLA("LsoftmaxWeightsGrad", weights_grad<false>);
LSOFTMAX_REGISTER_XLA_ON("CPU", "LsoftmaxLossFeaturesGrad", call_or_formula<call_features_grad, features_grad<true>>);
LSOFTMAX_REGISTER_XLA_ON("GPU", "LsoftmaxLossFeaturesGrad", features_grad<true>);
LSOFTMAX_REGISTER_XLA_ON("CPU", "LsoftmaxLossWeightsGrad", call_or_formula<call_weights_grad, weights_grad<true>>);
LSOFTMAX_REGISTER_XLA_ON("GPU", "LsoftmaxLossWeightsGrad", weights_grad<true>);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

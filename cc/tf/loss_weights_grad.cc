// LsoftmaxLossWeightsGrad: the weight gradient of a loss, from that through X W, in place
//
//   weights_grad[:, y] = products_weights_grad[:, y] + sum over the samples i of class y of h_i (g_s x_i + 2 g_B w_y)
//
// with (g_s, g_A, g_B) = geometry_grad[:, i] and h = loss_grad grad_unit. Only the columns of the batch's own classes are touched.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLossWeightsGrad")
    .Input("products_weights_grad: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("loss_grad: T")
    .Input("geometry_grad: double")
    .Input("target_weights: T")
    .Input("grad_unit: float")
    .Output("weights_grad: T")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels, ignored;
      TF_RETURN_IF_ERROR(merge_layer(c, 1, &features, &weights, &labels));
      TF_RETURN_IF_ERROR(
          merge_input(c, 0, "products_weights_grad", {c->Dim(weights, 0), c->Dim(weights, 1)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 6, "loss_grad", {c->Dim(labels, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 7, "geometry_grad", {3, c->Dim(labels, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input_or_none(c, 8, "target_weights", {c->Dim(labels, 0), c->Dim(weights, 0)}));
      TF_RETURN_IF_ERROR(merge_input(c, 9, "grad_unit", {c->Dim(labels, 0)}, &ignored));
      c->set_output(0, weights);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxLossWithGradient in its weights.

products_weights_grad: [D, C], the transposed features, each times its `loss_grad`, times `products_grad`.
features: [N, D].
weights: [D, C].
labels: [N].
bias: [C], or [0] for none.
lam: [], the annealing weight lambda.
loss_grad: [N], the gradient that reached the loss.
geometry_grad: [3, N].
target_weights: [N, D], or [0, 0]: the columns are read from `weights`.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxLossOfSums, what geometry_grad is a multiple of.
weights_grad: [D, C].
)doc");

template <typename Backend, typename T>
class LossWeightsGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor geometry_grad = context->input(7), target_weights = context->input(8), grad_unit = context->input(9);
    Inputs<Core<T>> args;
    OP_REQUIRES_OK(context, read_layer<Backend, T>(context, 1, &args));
    OP_REQUIRES_OK(context, check_shape("products_weights_grad", context->input(0), {args.depth, args.classes}));
    OP_REQUIRES_OK(context, check_shape("loss_grad", context->input(6), {args.rows}));
    OP_REQUIRES_OK(context, check_shape("geometry_grad", geometry_grad, {3, args.rows}));
    OP_REQUIRES_OK(context, read_target_weights<T>(&target_weights, &args));
    OP_REQUIRES_OK(context, read_grad_unit<T>(&grad_unit, &args));

    Tensor* weights_grad = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &weights_grad));
    args.loss_grad = data_of<T>(context->input(6));
    args.geometry_grad = data_of<double>(&geometry_grad);
    args.weights_grad = data_of<T>(weights_grad);
    Backend::weights_grad(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossWeightsGrad", LossWeightsGradOp);

}  // namespace lsoftmax

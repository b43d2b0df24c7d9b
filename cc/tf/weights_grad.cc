// LsoftmaxWeightsGrad: completes the weight gradient of the product X W with that of the geometry, in place
//
//   weights_grad[:, y] += sum over the samples i of class y of g_s x_i + 2 g_B w_y
//
// with (g_s, g_A, g_B) = geometry_grad[:, i].
//
// Only the columns of the batch's own classes are touched, and no matrix beside the product's is made.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxWeightsGrad")
    .Input("products_weights_grad: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("geometry_grad: double")
    .Output("weights_grad: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels, ignored;
      TF_RETURN_IF_ERROR(merge_batch(c, 1, &features, &weights, &labels));
      TF_RETURN_IF_ERROR(
          merge_input(c, 0, "products_weights_grad", {c->Dim(weights, 0), c->Dim(weights, 1)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "geometry_grad", {3, c->Dim(labels, 0)}, &ignored));
      c->set_output(0, weights);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxTargetGeometry in its weights.

products_weights_grad: [D, C], the gradient that reached `same_weights`.
features: [N, D].
weights: [D, C].
labels: [N].
geometry_grad: [3, N], the gradient that reached `geometry`.
weights_grad: [D, C], their sum.
)doc");

template <typename Backend, typename T>
class WeightsGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor geometry_grad = context->input(4);
    Inputs<Core<T>> args;
    OP_REQUIRES_OK(context, read_batch<Backend, T>(context, 1, &args));
    OP_REQUIRES_OK(context, check_shape("products_weights_grad", context->input(0), {args.depth, args.classes}));
    OP_REQUIRES_OK(context, check_shape("geometry_grad", geometry_grad, {3, args.rows}));

    Tensor* weights_grad = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &weights_grad));
    args.geometry_grad = data_of<double>(&geometry_grad);
    args.weights_grad = data_of<T>(weights_grad);
    Backend::weights_grad(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxWeightsGrad", WeightsGradOp);

}  // namespace lsoftmax

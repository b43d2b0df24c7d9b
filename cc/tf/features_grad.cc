// LsoftmaxFeaturesGrad: completes the feature gradient of the product X W with that of the geometry, in place
//
//   features_grad[i] += g_s w_{y_i} + 2 g_A x_i      with (g_s, g_A, g_B) = geometry_grad[:, i]
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxFeaturesGrad")
    .Input("products_features_grad: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("geometry_grad: double")
    .Output("features_grad: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels, ignored;
      TF_RETURN_IF_ERROR(merge_batch(c, 1, &features, &weights, &labels));
      TF_RETURN_IF_ERROR(
          merge_input(c, 0, "products_features_grad", {c->Dim(features, 0), c->Dim(features, 1)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "geometry_grad", {3, c->Dim(labels, 0)}, &ignored));
      c->set_output(0, features);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxTargetGeometry in its features.

products_features_grad: [N, D], the gradient that reached `same_features`.
features: [N, D].
weights: [D, C].
labels: [N].
geometry_grad: [3, N], the gradient that reached `geometry`.
features_grad: [N, D], their sum.
)doc");

template <typename Backend, typename T>
class FeaturesGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor geometry_grad = context->input(4);
    Inputs<Core<T>> args;
    OP_REQUIRES_OK(context, read_batch<Backend, T>(context, 1, &args));
    OP_REQUIRES_OK(context, check_shape("products_features_grad", context->input(0), {args.rows, args.depth}));
    OP_REQUIRES_OK(context, check_shape("geometry_grad", geometry_grad, {3, args.rows}));

    Tensor* features_grad = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &features_grad));
    args.geometry_grad = data_of<double>(&geometry_grad);
    args.features_grad = data_of<T>(features_grad);
    Backend::features_grad(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxFeaturesGrad", FeaturesGradOp);

}  // namespace lsoftmax

// LsoftmaxTargetGeometry: features X [N, D], weights W [D, C], labels y [N]  ->  X, W, geometry [3, N]
//
//   geometry[0, i] = x_i . w_{y_i}     geometry[1, i] = |x_i|^2     geometry[2, i] = |w_{y_i}|^2
//
// Everything that the margin needs to know of a sample. X and W pass through untouched and uncopied, so that
// the gradient of this op meets the gradients of the matrix product X W and can complete them in place.
#include "absl/strings/str_cat.h"
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxTargetGeometry")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Output("same_features: T")
    .Output("same_weights: T")
    .Output("geometry: double")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "features", {c->UnknownDim(), c->UnknownDim()}, &features));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "weights", {c->Dim(features, 1), c->UnknownDim()}, &weights));
      TF_RETURN_IF_ERROR(merge_input(c, 2, "labels", {c->Dim(features, 0)}, &labels));
      if (c->Value(c->Dim(weights, 1)) == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("weights: expected at least one class, got shape ", c->DebugString(weights)));
      }
      c->set_output(0, c->MakeShape({c->Dim(labels, 0), c->Dim(weights, 0)}));
      c->set_output(1, weights);
      c->set_output(2, c->Matrix(3, c->Dim(labels, 0)));
      return absl::Status();
    })
    .Doc(R"doc(
The geometry of every sample and the weight column of its class.

features: [N, D].
weights: [D, C], a column for every class.
labels: [N], each in [0, C), or -1 for a sample without a target, whose geometry is 0.
same_features: `features`, the same buffer. Multiply these ...
same_weights: ... with these, and the product's gradients are completed in place.
geometry: [3, N], the inner product of the sample and its class's weights, and both squared norms.
)doc");

template <typename Backend, typename T>
class TargetGeometryOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& features = context->input(0);
    const Tensor& weights = context->input(1);
    const Tensor& labels = context->input(2);
    OP_REQUIRES_OK(context, check_shape("features", features, {-1, -1}));
    OP_REQUIRES_OK(context, check_shape("weights", weights, {features.dim_size(1), -1}));
    OP_REQUIRES_OK(context, check_shape("labels", labels, {features.dim_size(0)}));
    Arguments<Core<T>> args;
    args.rows = features.dim_size(0);
    args.depth = weights.dim_size(0);
    args.classes = weights.dim_size(1);
    OP_REQUIRES(context, args.classes > 0,
                absl::InvalidArgumentError(
                    absl::StrCat("weights: expected at least one class, got shape ", weights.shape().DebugString())));
    OP_REQUIRES_OK(context, Backend::check_labels(labels, args.classes));

    Tensor* geometry = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({3, args.rows}), &geometry));
    context->set_output(0, features);
    context->set_output(1, weights);
    args.features = data_of<T>(features);
    args.weights = data_of<T>(weights);
    args.labels = labels_of(labels);
    args.geometry = data_of<double>(geometry);
    Backend::geometry(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxTargetGeometry", TargetGeometryOp);

}  // namespace lsoftmax

// LsoftmaxTargetGeometry: features X [N, D], weights W [D, C], labels y [N]  ->  X, W, geometry [3, N]
//
//   geometry[0, i] = x_i . w_{y_i}     geometry[1, i] = |x_i|^2     geometry[2, i] = |w_{y_i}|^2
//
// Everything that the margin needs to know of a sample. X and W pass through untouched and uncopied, so that
// the gradient of this op meets the gradients of the matrix product X W and can complete them in place.
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
      TF_RETURN_IF_ERROR(merge_batch(c, 0, &features, &weights, &labels));
      c->set_output(0, features);
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
    Inputs<Core<T>> args;
    OP_REQUIRES_OK(context, read_batch<Backend, T>(context, 0, &args));

    Tensor* geometry = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(2, TensorShape({3, args.rows}), &geometry));
    context->set_output(0, context->input(0));
    context->set_output(1, context->input(1));
    args.geometry = data_of<double>(geometry);
    Backend::geometry(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxTargetGeometry", TargetGeometryOp);

}  // namespace lsoftmax

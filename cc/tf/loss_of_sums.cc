// LsoftmaxLossOfSums: the loss of every row from the sums over its classes, and the target's share of its gradient
//
//   loss[i], normalizer[:, i], target_grad[i], geometry_grad[:, i]      core/softmax.h has the formulas
//
// the last three, of float16, in units of grad_unit[i], as those of LsoftmaxLoss.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLossOfSums")
    .Input("sums: double")
    .Input("geometry: double")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("depth: int64")
    .Output("loss: T")
    .Output("normalizer: double")
    .Output("geometry_grad: double")
    .Output("target_grad: double")
    .Output("predicted: int64")
    .Output("grad_unit: float")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle labels, geometry, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 2, "labels", {c->UnknownDim()}, &labels));
      TF_RETURN_IF_ERROR(merge_input(c, 0, "sums", {4, c->Dim(labels, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "geometry", {3, c->Dim(labels, 0)}, &geometry));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "bias", {c->UnknownDim()}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "lam", {}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 5, "depth", {}, &ignored));
      int output = 0;
      for (const ShapeHandle& shape : {labels, c->Matrix(2, c->Dim(labels, 0)), geometry, labels, labels, labels}) {
        c->set_output(output++, shape);
      }
      return absl::Status();
    })
    .Doc(R"doc(
The loss of LsoftmaxLoss, from sums that LsoftmaxLogSumExp has gathered.

sums: [4, N], over all classes.
geometry: [3, N], from LsoftmaxTargetGeometry.
labels: [N], as checked by LsoftmaxTargetGeometry.
bias: [C], of all classes, or [0] for none.
lam: [], the annealing weight lambda >= 0.
depth: [], the number D of features of a sample.
margin: m, from 1 (no margin) to 64.
loss: [N].
normalizer: [2, N], for LsoftmaxProductsGrad.
geometry_grad: [3, N], the derivative of each row's loss in its geometry, in units of grad_unit.
target_grad: [N], the derivative of each row's loss in its target's logit, in units of grad_unit.
predicted: [N], the class of the largest logit without the margin.
grad_unit: [N], 1 but for float16, whose units are powers of two; that of LsoftmaxProductsGrad's result, too.
)doc");

template <typename Backend, typename T>
class LossOfSumsOp : public OpKernel {
 public:
  explicit LossOfSumsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compute(OpKernelContext* context) override {
    Tensor sums = context->input(0), geometry = context->input(1);
    const Tensor& labels = context->input(2);
    const Tensor& bias = context->input(3);
    const Tensor& lambda = context->input(4);
    Inputs<Core<T>> args;
    args.margin = margin_;
    OP_REQUIRES_OK(context, check_shape("labels", labels, {-1}));
    args.rows = labels.dim_size(0);
    OP_REQUIRES_OK(context, check_shape("sums", sums, {4, args.rows}));
    OP_REQUIRES_OK(context, check_shape("geometry", geometry, {3, args.rows}));
    OP_REQUIRES_OK(context, read_bias<T>(bias, -1, &args.bias));
    OP_REQUIRES_OK(context, check_shape("lam", lambda, {}));
    OP_REQUIRES_OK(context, Backend::read_lambda(lambda, &args));
    OP_REQUIRES_OK(context, check_shape("depth", context->input(5), {}));
    args.depth = *data_of<int64_t>(context->input(5));
    args.labels = labels_of(labels);
    args.classes = bias.dim_size(0);
    if (args.bias != nullptr) OP_REQUIRES_OK(context, Backend::read_labels(labels, &args));
    args.sums = data_of<double>(&sums);
    args.geometry = data_of<double>(&geometry);

    Tensor *loss, *normalizer, *geometry_grad, *target_grad, *predicted, *grad_unit;
    OP_REQUIRES_OK(context, context->allocate_output(0, labels.shape(), &loss));
    OP_REQUIRES_OK(context, context->allocate_output(1, {2, args.rows}, &normalizer));
    OP_REQUIRES_OK(context, context->allocate_output(2, {3, args.rows}, &geometry_grad));
    OP_REQUIRES_OK(context, context->allocate_output(3, labels.shape(), &target_grad));
    OP_REQUIRES_OK(context, context->allocate_output(4, labels.shape(), &predicted));
    OP_REQUIRES_OK(context, context->allocate_output(5, labels.shape(), &grad_unit));
    args.loss = data_of<T>(loss);
    args.normalizer = data_of<double>(normalizer);
    args.geometry_grad = data_of<double>(geometry_grad);
    args.target_grad = data_of<double>(target_grad);
    args.predicted = data_of<int64_t>(predicted);
    args.grad_unit = data_of<float>(grad_unit);
    Backend::finish(context, args);
  }

 private:
  int margin_ = 1;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossOfSums", LossOfSumsOp, .HostMemory("depth"));

}  // namespace lsoftmax

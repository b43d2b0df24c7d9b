// LsoftmaxBiasGrad: the bias gradient of a loss, all classes or a block of them
//
//   bias_grad[c] = sum_i loss_grad[i] grad_unit[i] (products_grad[i, c] + [y_i = c] target_grad[i])
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxBiasGrad")
    .Input("products_grad: T")
    .Input("labels: Tlabels")
    .Input("first_class: int64")
    .Input("loss_grad: T")
    .Input("target_grad: double")
    .Input("grad_unit: float")
    .Output("bias_grad: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products_grad, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "products_grad", {c->UnknownDim(), c->UnknownDim()}, &products_grad));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "labels", {c->Dim(products_grad, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 2, "first_class", {}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "loss_grad", {c->Dim(products_grad, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "target_grad", {c->Dim(products_grad, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 5, "grad_unit", {c->Dim(products_grad, 0)}, &ignored));
      c->set_output(0, c->Vector(c->Dim(products_grad, 1)));
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of a loss in the bias of its logits.

products_grad: [N, B], of LsoftmaxLoss or LsoftmaxProductsGrad.
labels: [N].
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
loss_grad: [N], the gradient that reached the loss.
target_grad: [N], of LsoftmaxLoss or LsoftmaxLossOfSums.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxLossOfSums, what products_grad and target_grad are multiples of.
bias_grad: [B].
)doc");

template <typename Backend, typename T>
class BiasGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor products_grad = context->input(0), target_grad = context->input(4), grad_unit = context->input(5);
    Arguments<Core<T>> args;
    OP_REQUIRES_OK(context, check_shape("products_grad", products_grad, {-1, -1}));
    args.rows = products_grad.dim_size(0);
    args.classes = products_grad.dim_size(1);
    OP_REQUIRES_OK(context, check_shape("labels", context->input(1), {args.rows}));
    OP_REQUIRES_OK(context, read_first_class(context->input(2), args.classes, &args.first_class));
    OP_REQUIRES_OK(context, check_shape("loss_grad", context->input(3), {args.rows}));
    OP_REQUIRES_OK(context, check_shape("target_grad", target_grad, {args.rows}));
    OP_REQUIRES_OK(context, read_grad_unit<T>(&grad_unit, &args));

    Tensor* bias_grad = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {args.classes}, &bias_grad));
    args.logits_grad = data_of<T>(&products_grad);
    args.labels = labels_of(context->input(1));
    args.loss_grad = data_of<T>(context->input(3));
    args.target_grad = data_of<double>(&target_grad);
    args.bias_grad = data_of<T>(bias_grad);
    Backend::bias_grad(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxBiasGrad", BiasGradOp, .HostMemory("first_class"));

}  // namespace lsoftmax

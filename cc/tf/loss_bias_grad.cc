// LsoftmaxLossBiasGrad: the bias gradient of a loss, computed by LsoftmaxBiasGrad, as a function of what it depends on
//
// The value passes through uncopied; the op is there for its own gradient (lsoftmax_op/gradients.py).
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLossBiasGrad")
    .Input("value: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("loss_grad: T")
    .Output("bias_grad: T")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels, bias, value, ignored;
      TF_RETURN_IF_ERROR(merge_layer(c, 1, &features, &weights, &labels));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "bias", {c->UnknownDim()}, &bias));
      TF_RETURN_IF_ERROR(merge_input(c, 0, "value", {c->Dim(bias, 0)}, &value));
      TF_RETURN_IF_ERROR(merge_input(c, 6, "loss_grad", {c->Dim(labels, 0)}, &ignored));
      c->set_output(0, value);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxLossWithGradient in its bias.

value: [C], of LsoftmaxBiasGrad.
features: [N, D].
weights: [D, C].
labels: [N].
bias: [C].
lam: [], the annealing weight lambda.
loss_grad: [N], the gradient that reached the loss.
bias_grad: [C], `value`, the same buffer.
)doc");

template <typename Backend, typename T>
class LossBiasGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    OP_REQUIRES_OK(context, check_loss_bias_grad([context](int index) { return context->input(index).shape(); }));
    context->set_output(0, context->input(0));
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossBiasGrad", LossBiasGradOp);

}  // namespace lsoftmax

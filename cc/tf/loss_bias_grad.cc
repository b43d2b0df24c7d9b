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
      c->set_output(0, c->input(0));
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxLossWithGradient in its bias.

value: [C], of LsoftmaxBiasGrad.
features: [N, D].
weights: [D, C].
labels: [N].
bias: [C].
lam: the annealing weight lambda.
loss_grad: [N], the gradient that reached the loss.
bias_grad: [C], `value`, the same buffer.
)doc");

template <typename Backend, typename T>
class LossBiasGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override { context->set_output(0, context->input(0)); }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossBiasGrad", LossBiasGradOp);

}  // namespace lsoftmax

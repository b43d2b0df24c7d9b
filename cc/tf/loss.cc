// The fused loss: the cross-entropy of the margin logits z, bias included, and its gradient, in one pass over the
// products X W.
//
//   Loss        loss[i]             = log(sum_j exp(z_ij)) - z_{i, y_i}
//               products_grad[i, j] = dloss[i] / d(products[i, j])               0 at the target
//               target_grad[i]      = dloss[i] / dz_{i, y_i}
//               geometry_grad[:, i] = target_grad[i] dt / d(geometry[:, i])      core/softmax.h has the formulas
//               the last three, of float16, in units of grad_unit[i] (core/grad_unit.h): divided by it
//   BiasGrad    bias_grad[c] = sum_i loss_grad[i] grad_unit[i] (products_grad[i, c] + [y_i = c] target_grad[i])
//
// The products' gradient is in their own buffer where TensorFlow gives it away. BiasGrad takes all classes or a block
// of them.
//
// Two ops are there for their gradients alone (lsoftmax_op/gradients.py); what they are of passes through uncopied.
//
//   LossWithGradient   a loss, as a function of features, weights and bias. Its gradient is that of the whole layer,
//                      X W included, so that the upstream gradient, one number a row, is folded into N x D arrays and
//                      no further pass over N x C is made. Were it Loss itself, TensorFlow would hand its gradient
//                      zeros for the other seven outputs: eagerly, as dense as these are.
//   LossGradient       one of the loss's gradients, as a function of them. So its own gradient, the loss's second
//                      derivatives, can be told without the products.
#include "tf/kernel_op.h"

namespace lsoftmax {
namespace {

REGISTER_OP("LsoftmaxLoss")
    .Input("products: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("terms: double")
    .Input("class_factors: Twide")
    .Output("loss: T")
    .Output("products_grad: T")
    .Output("geometry: double")
    .Output("geometry_grad: double")
    .Output("target_grad: double")
    .Output("target_weights: T")
    .Output("predicted: int64")
    .Output("grad_unit: float")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The softmax cross-entropy of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), or of a margin with terms,
and its gradient.

products: [N, C], `features` times `weights`.
features: [N, D].
weights: [D, C], a column for every class; or [C, D] if class_major.
labels: [N], each in [0, C), or -1 for a row whose loss and gradient are 0.
bias: [C], or [0] for none, as with class_factors.
lam: [], the annealing weight lambda >= 0; at infinity the margin vanishes.
terms: [7], shift, cos(shift), sin(shift), offset, scale, and for smoothed labels epsilon and epsilon / C; or [0] for
  0, 1, 0, 0, 1, 0 and 0.
class_factors: [C], of LsoftmaxClassFactors, or ones, where `scale` is not 1 or norms are divided by; else [0].
margin: m, from 1 (no margin) to 64.
normalize_features: whether logits are divided by the norms of the features: with terms.
normalize_weights: whether they are divided by the norms of the weights: with terms.
linear_continuation: whether psi goes on in a straight line beyond m theta + shift = pi: with terms and m = 1.
class_major: whether the weights of a class are a row of `weights`, and not a column.
loss: [N].
products_grad: [N, C], the derivative of each row's loss in its products, in units of grad_unit, but 0 at its target.
geometry: [3, N], the inner product of the sample and its class's weights, and both squared norms.
geometry_grad: [3, N], the derivative of each row's loss in its geometry, the target's share, in units of grad_unit.
target_grad: [N], the derivative of each row's loss in its target's logit, in units of grad_unit.
target_weights: [N, D], the weights of each row's class, 0 without a target.
predicted: [N], the class of the largest logit without the margin.
grad_unit: [N], 1 but for float16, whose units are powers of two.
)doc");

REGISTER_OP("LsoftmaxLossWithGradient")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("terms: double")
    .Input("class_factors: Twide")
    .Input("loss: T")
    .Input("whole_products_grad: T")
    .Input("geometry_grad: double")
    .Input("target_grad: double")
    .Input("target_weights: T")
    .Input("normalizer_of_blocks: double")
    .Input("grad_unit: float")
    .Output("same_loss: T")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("class_block_size: int >= 0 = 0")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The loss of LsoftmaxLoss, or of LsoftmaxFinish, differentiable.

features: [N, D].
weights: [D, C]; or [C, D] if class_major.
labels: [N].
bias: [C], or [0] for none.
lam: [], the annealing weight lambda.
terms: [7] or [0].
class_factors: [C] or [0].
loss: [N], of the above.
whole_products_grad: [N, C], of LsoftmaxLoss; [0] where the gradient is made block by block.
geometry_grad: [3, N], of LsoftmaxLoss or LsoftmaxFinish.
target_grad: [N], of LsoftmaxLoss or LsoftmaxFinish.
target_weights: [N, D], of LsoftmaxLoss; [0] where the gradient is made block by block.
normalizer_of_blocks: [3, N], of LsoftmaxFinish; [0] where LsoftmaxLoss made the gradient.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxFinish.
class_block_size: the classes of a block; 0 where LsoftmaxLoss made the gradient.
class_major: whether the weights of a class are a row of `weights`, and not a column.
same_loss: `loss`, the same buffer.
)doc");

REGISTER_OP("LsoftmaxLossGradient")
    .Input("gradient: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("terms: double")
    .Input("loss_grad: T")
    .Output("same_gradient: T")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("of: {'features', 'weights', 'bias'} = 'features'")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of LsoftmaxLossWithGradient in one of its arguments, differentiable.

gradient: [N, D], in the features; that of `weights` if `of` is weights, [C] if it is bias.
features: [N, D].
weights: [D, C]; or [C, D] if class_major.
labels: [N].
bias: [C], or [0] for none.
lam: [], the annealing weight lambda.
terms: [7] or [0].
loss_grad: [N], the upstream gradient of the loss.
of: the argument that it is the gradient in.
class_major: whether the weights of a class are a row of `weights`, and not a column.
same_gradient: `gradient`, the same buffer.
)doc");

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
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of a loss in the bias of its logits.

products_grad: [N, B], of LsoftmaxLoss or LsoftmaxProductsGrad.
labels: [N], global class indices; -1 for a row without a target.
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
loss_grad: [N], the upstream gradient of the loss; [0] for 1 in every row.
target_grad: [N], of LsoftmaxLoss or LsoftmaxFinish.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxFinish, what products_grad and target_grad are multiples of; [0] for 1.
bias_grad: [B].
)doc");

template <typename Backend, typename T>
using Loss = KernelOp<Backend, T, Kernel::geometry_and_loss, kProductsGrad>;
template <typename Backend, typename T>
using BiasGrad = KernelOp<Backend, T, Kernel::bias_grad, kNowhere>;

// Hands on the input that its output is the same as.
template <typename Backend, typename T>
class SameOp : public OpKernel {
 public:
  explicit SameOp(OpKernelConstruction* construction) : OpKernel(construction), signature_(*this, construction) {}

  void Compute(OpKernelContext* context) override {
    Sizes sizes;
    OP_REQUIRES_OK(context, signature_.check(context, &sizes));
    context->set_output(0, context->input(signature_.outputs()[0].same));
  }

  bool IsExpensive() override { return false; }  // not worth another thread

 private:
  const Signature signature_;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLoss", Loss);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossWithGradient", SameOp);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossGradient", SameOp);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxBiasGrad", BiasGrad, .HostMemory("first_class"));

}  // namespace
}  // namespace lsoftmax

// LsoftmaxLossWithGradient: a loss, computed by LsoftmaxLoss or block by block, as a function of what it depends on
//
// The value passes through uncopied. The op is there for its gradient (lsoftmax_op/gradients.py): that of the whole layer,
// X W included, so that what comes down to the loss, one number a row, is folded into N x D arrays and no
// further pass over N x C is made.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLossWithGradient")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("value: T")
    .Input("products_grad: T")
    .Input("geometry_grad: double")
    .Input("target_grad: double")
    .Input("target_weights: T")
    .Input("normalizer: double")
    .Input("grad_unit: float")
    .Output("loss: T")
    .Attr("margin: int >= 1")
    .Attr("class_block_size: int >= 0 = 0")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle features, weights, labels, ignored;
      int64_t class_block_size = 0;
      TF_RETURN_IF_ERROR(c->GetAttr("class_block_size", &class_block_size));
      TF_RETURN_IF_ERROR(merge_layer(c, 0, &features, &weights, &labels));
      const DimensionHandle rows = c->Dim(labels, 0), depth = c->Dim(weights, 0), classes = c->Dim(weights, 1);
      const DimensionHandle none = c->MakeDim(0);
      const bool in_blocks = class_block_size > 0;
      const auto unless_in_blocks = [&](DimensionHandle size) { return in_blocks ? none : size; };
      TF_RETURN_IF_ERROR(merge_input(c, 5, "value", {rows}, &ignored));
      TF_RETURN_IF_ERROR(
          merge_input(c, 6, "products_grad", {unless_in_blocks(rows), unless_in_blocks(classes)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 7, "geometry_grad", {3, rows}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 8, "target_grad", {rows}, &ignored));
      TF_RETURN_IF_ERROR(
          merge_input(c, 9, "target_weights", {unless_in_blocks(rows), unless_in_blocks(depth)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 10, "normalizer", {2, in_blocks ? rows : none}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 11, "grad_unit", {rows}, &ignored));
      c->set_output(0, labels);
      return absl::Status();
    })
    .Doc(R"doc(
The loss of LsoftmaxLoss, differentiable.

features: [N, D].
weights: [D, C].
labels: [N].
bias: [C], or [0] for none.
lam: [], the annealing weight lambda.
value: [N], the loss of the above.
products_grad: [N, C], of LsoftmaxLoss; [0, 0] where the gradient is made block by block.
geometry_grad: [3, N], of LsoftmaxLoss or LsoftmaxLossOfSums.
target_grad: [N], of LsoftmaxLoss or LsoftmaxLossOfSums.
target_weights: [N, D], of LsoftmaxLoss; [0, 0] where the gradient is made block by block.
normalizer: [2, 0] where LsoftmaxLoss made the gradient; [2, N], of LsoftmaxLossOfSums.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxLossOfSums.
class_block_size: the classes of a block; 0 where LsoftmaxLoss made the gradient.
loss: [N], `value`, the same buffer.
)doc");

template <typename Backend, typename T>
class LossWithGradientOp : public OpKernel {
 public:
  explicit LossWithGradientOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, construction->GetAttr("class_block_size", &class_block_size_));
  }

  void Compute(OpKernelContext* context) override {
    const auto shape_of = [context](int index) { return context->input(index).shape(); };
    OP_REQUIRES_OK(context, check_loss_with_gradient(shape_of, class_block_size_));
    context->set_output(0, context->input(5));
  }

 private:
  int64_t class_block_size_ = 0;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLossWithGradient", LossWithGradientOp);

}  // namespace lsoftmax

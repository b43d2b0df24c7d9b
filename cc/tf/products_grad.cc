// LsoftmaxProductsGrad: the gradient of every row's loss in a block of its products, in their own buffer
//
//   products_grad[i, j] = exp(z_ij - m_i) scale_i      with (m, scale)_i = normalizer[:, i]; 0 at the target
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxProductsGrad")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("first_class: int64")
    .Input("normalizer: double")
    .Output("products_grad: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "products", {c->UnknownDim(), c->UnknownDim()}, &products));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "labels", {c->Dim(products, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input_or_none(c, 2, "bias", {c->Dim(products, 1)}));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "first_class", {}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "normalizer", {2, c->Dim(products, 0)}, &ignored));
      c->set_output(0, products);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of the loss in its products, block by block.

products: [N, B], features times the weights of the block's classes.
labels: [N], counted from the first class of all; -1 for a row without a target.
bias: [B], or [0] for none.
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
normalizer: [2, N], of LsoftmaxLossOfSums.
products_grad: [N, B].
)doc");

template <typename Backend, typename T>
class ProductsGradOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Tensor normalizer = context->input(4);
    Arguments<Core<T>> args;
    OP_REQUIRES_OK(context, read_block<T>(context, &args));
    OP_REQUIRES_OK(context, check_shape("normalizer", normalizer, {2, args.rows}));
    Tensor* products_grad = nullptr;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, context->input(0).shape(), &products_grad));
    args.normalizer = data_of<double>(&normalizer);
    args.logits_grad = data_of<T>(products_grad);
    Backend::products_grad(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxProductsGrad", ProductsGradOp, .HostMemory("first_class"));

}  // namespace lsoftmax

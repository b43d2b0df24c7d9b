// LsoftmaxLogSumExp: takes a block of classes into the sums of every row (core/softmax.h)
//
//   sums[:, i] = (largest logit m but the target's, sum of exp(z - m), largest logit, its class)
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLogSumExp")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("first_class: int64")
    .Input("sums: double")
    .Output("new_sums: double")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products, sums, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "products", {c->UnknownDim(), c->UnknownDim()}, &products));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "labels", {c->Dim(products, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input_or_none(c, 2, "bias", {c->Dim(products, 1)}));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "first_class", {}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 4, "sums", {4, c->Dim(products, 0)}, &sums));
      c->set_output(0, sums);
      return absl::Status();
    })
    .Doc(R"doc(
Log-sum-exp, block by block.

products: [N, B], features times the weights of the block's classes.
labels: [N], counted from the first class of all; -1 for a row without a target.
bias: [B], or [0] for none.
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
sums: [4, N], of the blocks before; of none: the lowest finite number, 0, the lowest finite number, 0.
new_sums: [4, N].
)doc");

template <typename Backend, typename T>
class LogSumExpOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    Arguments<Core<T>> args;
    OP_REQUIRES_OK(context, read_block<T>(context, &args));
    OP_REQUIRES_OK(context, check_shape("sums", context->input(4), {4, args.rows}));
    Tensor* sums = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<double>(context, 4, &sums));
    args.sums = data_of<double>(sums);
    Backend::sums(context, args);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLogSumExp", LogSumExpOp, .HostMemory("first_class"));

}  // namespace lsoftmax

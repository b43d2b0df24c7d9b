// LsoftmaxSetColumns: matrix[:, first_column .. first_column + B) = block, in the matrix's own buffer where TensorFlow
// gives it away
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxSetColumns")
    .Input("matrix: T")
    .Input("block: T")
    .Input("first_column: int64")
    .Output("new_matrix: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle matrix, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "matrix", {c->UnknownDim(), c->UnknownDim()}, &matrix));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "block", {c->Dim(matrix, 0), c->UnknownDim()}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 2, "first_column", {}, &ignored));
      c->set_output(0, matrix);
      return absl::Status();
    })
    .Doc(R"doc(
Replaces some columns of a matrix.

matrix: [D, C].
block: [D, B].
first_column: [], where the block begins, from 0 to C - B. Where XLA cannot raise an error (on a GPU), a block that begins
  elsewhere is written as NaNs, as near to its place as there is room.
new_matrix: [D, C].
)doc");

template <typename Backend, typename T>
class SetColumnsOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& block = context->input(1);
    OP_REQUIRES_OK(context, check_shape("matrix", context->input(0), {-1, -1}));
    const int64_t height = context->input(0).dim_size(0), width = context->input(0).dim_size(1);
    OP_REQUIRES_OK(context, check_shape("block", block, {height, -1}));
    OP_REQUIRES_OK(context, check_shape("first_column", context->input(2), {}));
    const int64_t first = *data_of<int64_t>(context->input(2));
    OP_REQUIRES_OK(context, check_first("first_column", first, block.dim_size(1), width));

    Tensor* matrix = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &matrix));
    Backend::copy_columns(context, data_of<T>(block), block.dim_size(1), data_of<T>(matrix) + first, width, height);
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxSetColumns", SetColumnsOp, .HostMemory("first_column"));

}  // namespace lsoftmax

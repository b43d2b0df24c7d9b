// The fused loss for whom the products X W are at hand a block of the classes at a time. Labels are global class
// indices, and first_class is that of a block's first column.
//
//   Sums           takes a block into every row's sums: the largest logit m but the target's, the sum of exp(z - m),
//                  the largest logit, its class, and where labels are smoothed the sum of z
//   Finish         loss, normalizer and the target's share of the gradient, from the sums over all classes
//                  (core/softmax.h)
//   ProductsGrad   products_grad[i, j] = (exp(z_ij - m_i) scale_i + addend_i) class_factors[j], with
//                  (m, scale, addend)_i = normalizer[:, i]; 0 at the target; in the products' own buffer
//   SetColumns     matrix[:, first_column .. first_column + B) = block, in the matrix's own buffer where TensorFlow
//                  gives it away. TensorFlow's own op for it, TensorStridedSliceUpdate, took 237 ms where this one
//                  takes 21.
#include "tf/kernel_op.h"

namespace lsoftmax {
namespace {

REGISTER_OP("LsoftmaxSums")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("first_class: int64")
    .Input("class_factors: Twide")
    .Input("terms: double")
    .Input("geometry: double")
    .Input("sums_before: double")
    .Output("sums: double")
    .Attr("normalize_features: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The sums over every row's classes, block by block.

products: [N, B], features times the weights of the block's classes.
labels: [N], global class indices; -1 for a row without a target.
bias: [B], or [0] for none, as with class_factors.
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
class_factors: [B], of the block's classes, or [0], as for LsoftmaxLoss.
terms: [7], as for LsoftmaxLoss, or [0].
geometry: [3, N], from LsoftmaxTargetGeometry; not read where there are no class_factors.
sums_before: [5, N], of the blocks before; of none: the lowest finite number, 0, the lowest finite number, 0, 0.
normalize_features: as for LsoftmaxLoss.
sums: [5, N], with this block.
)doc");

REGISTER_OP("LsoftmaxFinish")
    .Input("sums: double")
    .Input("geometry: double")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Input("terms: double")
    .Input("depth: int64")
    .Output("loss: T")
    .Output("normalizer: double")
    .Output("geometry_grad: double")
    .Output("target_grad: double")
    .Output("predicted: int64")
    .Output("grad_unit: float")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The loss of LsoftmaxLoss, from sums that LsoftmaxSums has gathered.

sums: [5, N], over all classes.
geometry: [3, N], from LsoftmaxTargetGeometry.
labels: [N], as checked by LsoftmaxTargetGeometry.
bias: [C], of all classes, or [0] for none.
lam: [], the annealing weight lambda >= 0.
terms: [7], shift, cos(shift), sin(shift), offset, scale, and for smoothed labels epsilon and epsilon / C; or [0] for
  0, 1, 0, 0, 1, 0 and 0.
depth: [], the number D of features of a sample.
margin: m, from 1 (no margin) to 64.
normalize_features: whether logits are divided by the norms of the features: with terms.
normalize_weights: whether they are divided by the norms of the weights: with terms.
linear_continuation: whether psi goes on in a straight line beyond m theta + shift = pi: with terms and m = 1.
loss: [N].
normalizer: [3, N], for LsoftmaxProductsGrad.
geometry_grad: [3, N], the derivative of each row's loss in its geometry, in units of grad_unit.
target_grad: [N], the derivative of each row's loss in its target's logit, in units of grad_unit.
predicted: [N], the class of the largest logit without the margin.
grad_unit: [N], 1 but for float16, whose units are powers of two; that of LsoftmaxProductsGrad's result, too.
)doc");

REGISTER_OP("LsoftmaxProductsGrad")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("first_class: int64")
    .Input("class_factors: Twide")
    .Input("terms: double")
    .Input("geometry: double")
    .Input("normalizer: double")
    .Output("products_grad: T")
    .Attr("normalize_features: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of the loss in its products, block by block.

products: [N, B], features times the weights of the block's classes.
labels: [N], global class indices; -1 for a row without a target.
bias: [B], or [0] for none, as with class_factors.
first_class: [], the class of the first column, >= 0. Under XLA, where nothing can raise an error, another makes NaNs.
class_factors: [B], of the block's classes, or [0], as for LsoftmaxLoss.
terms: [7], as for LsoftmaxLoss, or [0].
geometry: [3, N], from LsoftmaxTargetGeometry; not read where there are no class_factors.
normalizer: [3, N], of LsoftmaxFinish.
normalize_features: as for LsoftmaxLoss.
products_grad: [N, B].
)doc");

REGISTER_OP("LsoftmaxSetColumns")
    .Input("matrix: T")
    .Input("block: T")
    .Input("first_column: int64")
    .Output("new_matrix: T")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
Replaces some columns of a matrix, or some rows of one that is class-major.

matrix: [D, C]; or [C, D] if class_major.
block: [D, B]; or [B, D] if class_major.
class_major: whether what is replaced are rows.
first_column: [], where the block begins, from 0 to C - B. Where XLA cannot raise an error (on a GPU), a block that
  begins elsewhere is written as NaNs, as near to its place as there is room.
new_matrix: [D, C] as `matrix`.
)doc");

constexpr InPlace kSums = {"sums_before", "sums", InPlace::kChanged};

template <typename Backend, typename T>
using SumsOp = KernelOp<Backend, T, Kernel::sums, kSums>;
template <typename Backend, typename T>
using FinishOp = KernelOp<Backend, T, Kernel::finish, kNowhere>;
template <typename Backend, typename T>
using ProductsGradOp = KernelOp<Backend, T, Kernel::products_grad, kProductsGrad>;

template <typename Backend, typename T>
class SetColumnsOp : public OpKernel {
 public:
  explicit SetColumnsOp(OpKernelConstruction* construction) : OpKernel(construction), signature_(*this, construction) {}

  void Compute(OpKernelContext* context) override {
    Sizes sizes;
    OP_REQUIRES_OK(context, signature_.check(context, &sizes));
    const int64_t first = *data_of<int64_t>(context->input(2));
    OP_REQUIRES_OK(context, check_first("first_column", first, sizes.block(), sizes.classes()));

    Tensor* matrix = nullptr;
    OP_REQUIRES_OK(context, Backend::take(context, 0, 0, /*copied=*/true, &matrix));
    const int64_t size = sizeof(T), line = sizes.depth() * size;
    const void* const block = context->input(1).data();
    auto* const entries = static_cast<T*>(matrix->data());
    if (signature_.class_major()) {
      OP_REQUIRES_OK(context,
                     Backend::copy_rows(context, block, line, entries + first * sizes.depth(), line, sizes.block()));
    } else {
      OP_REQUIRES_OK(context, Backend::copy_rows(context, block, sizes.block() * size, entries + first,
                                                 sizes.classes() * size, sizes.depth()));
    }
  }

 private:
  const Signature signature_;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxSums", SumsOp, .HostMemory("first_class"));
LSOFTMAX_REGISTER_KERNELS("LsoftmaxFinish", FinishOp, .HostMemory("depth"));
LSOFTMAX_REGISTER_KERNELS("LsoftmaxProductsGrad", ProductsGradOp, .HostMemory("first_class"));
LSOFTMAX_REGISTER_KERNELS("LsoftmaxSetColumns", SetColumnsOp, .HostMemory("first_column"));

}  // namespace
}  // namespace lsoftmax

// The margin logits, and the gradient that goes back through them.
//
//   Logits       logits[i, y_i] = t(geometry[:, i])      with t of core/margin.h
//   LogitsGrad   geometry_grad[:, i] = g_i (dt/ds, dt/dA, dt/dB)      with g_i = logits_grad[i, y_i]
//                products_grad[i, y_i] = 0
//
// and every other entry of the products, or of their gradient, stays as it is, in its own buffer where TensorFlow gives
// it away. t is computed from the geometry, not from the product: a product in TF32 or bfloat16 does not bend the
// margin.
#include "tf/kernel_op.h"

namespace lsoftmax {
namespace {

REGISTER_OP("LsoftmaxLogits")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("geometry: double")
    .Input("lam: double")
    .Input("terms: double")
    .Output("logits: T")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6), or of a margin with terms.

products: [N, C], features times weights, without a bias: the plain logits of the margin.
labels: [N], each in [0, C), or -1 for a row that stays as it is.
geometry: [3, N], from LsoftmaxTargetGeometry of the same features, weights and labels.
lam: [], the annealing weight lambda >= 0; at infinity the margin vanishes.
terms: [7], shift, cos(shift), sin(shift), offset, scale, and for smoothed labels epsilon and epsilon / C; or [0] for
  0, 1, 0, 0, 1, 0 and 0.
margin: m, from 1 (no margin) to 64.
normalize_features: whether logits are divided by the norms of the features: with terms.
normalize_weights: whether they are divided by the norms of the weights: with terms.
linear_continuation: whether psi goes on in a straight line beyond m theta + shift = pi: with terms and m = 1.
logits: [N, C], `products` with the target's entry of each row replaced: by a multiple of them that has the scale and
  norms of `terms`, as the other entries should have.
)doc");

REGISTER_OP("LsoftmaxLogitsGrad")
    .Input("logits_grad: T")
    .Input("labels: Tlabels")
    .Input("geometry: double")
    .Input("lam: double")
    .Input("terms: double")
    .Output("products_grad: T")
    .Output("geometry_grad: double")
    .Attr("margin: int >= 1")
    .Attr("normalize_features: bool = false")
    .Attr("normalize_weights: bool = false")
    .Attr("linear_continuation: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of LsoftmaxLogits.

logits_grad: [N, C], the loss's derivative in the margin logits.
labels: [N].
geometry: [3, N].
lam: [], the annealing weight lambda.
terms: [7] or [0].
products_grad: [N, C], the loss's derivative in the products: 0 at a target with a margin.
geometry_grad: [3, N], the loss's derivative in the geometry.
)doc");

constexpr InPlace kLogits = {"products", "logits", InPlace::kChanged};
constexpr InPlace kLogitsGrad = {"logits_grad", "products_grad", InPlace::kChanged};

template <typename Backend, typename T>
using Logits = KernelOp<Backend, T, Kernel::logits, kLogits>;
template <typename Backend, typename T>
using LogitsGrad = KernelOp<Backend, T, Kernel::logits_grad, kLogitsGrad>;

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLogits", Logits);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxLogitsGrad", LogitsGrad);

}  // namespace
}  // namespace lsoftmax

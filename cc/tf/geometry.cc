// What the margin needs to know of a sample, and the gradients that go back through it.
//
//   TargetGeometry   geometry[:, i] = (x_i . w_{y_i}, |x_i|^2, |w_{y_i}|^2)
//   FeaturesGrad     features_grad[i]   = h_i (f_i + g_s w_{y_i} + 2 g_A x_i)           f = products_features_grad
//   WeightsGrad      weights_grad[:, y] = f_y + sum over the rows i of class y of       f = products_weights_grad
//                                         h_i (g_s x_i + 2 g_B w_y)
//   ClassFactors     class_factors[c]   = 1 / |w_c|
//
// with (g_s, g_A, g_B) = geometry_grad[:, i] and h = loss_grad grad_unit: of a loss; else 1. What the logits divide by
// the norm of, takes off f what is along it: f_i - x_i (x_i . f_i) / |x_i|^2, and so for every class.
//
// `weights` may be a range of all classes, as of a head whose classes lie on several devices: labels are global class
// indices, and a target is *here*, among the columns at hand, *elsewhere*, or *none* (-1). Without a target here the
// geometry is 0, and no more than the radial part is done to f: the sum over all ranges is what one op of all classes
// gives.
//
// Features and weights pass through TargetGeometry uncopied, so that the gradient of this op meets those of the matrix
// product X W and can complete them in place. Only the columns of the batch's own classes are touched, and no matrix
// beside the product's is made.
#include "tf/kernel_op.h"

namespace lsoftmax {
namespace {

REGISTER_OP("LsoftmaxTargetGeometry")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Output("same_features: T")
    .Output("same_weights: T")
    .Output("geometry: double")
    .Attr("first_class: int >= 0 = 0")
    .Attr("num_classes: int >= 0 = 0")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The geometry of every sample and the weight column of its class.

features: [N, D].
weights: [D, C], a column for every class; or [C, D] if class_major.
labels: [N], global class indices, or -1 for a sample without a target, whose geometry is 0, as is that of a sample
  whose target is not among the classes of `weights`.
first_class: the global class index of the first class of `weights`, where these are a range of all classes.
num_classes: how many classes there are in all, at least first_class + C; 0: those of `weights`.
class_major: whether the weights of a class are a row of `weights`, and not a column.
same_features: `features`, the same buffer. Multiply these ...
same_weights: ... with these, and the product's gradients are completed in place.
geometry: [3, N], the inner product of the sample and its class's weights, and both squared norms.
)doc");

REGISTER_OP("LsoftmaxClassFactors")
    .Input("weights: T")
    .Output("class_factors: Twide")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
What the logits of every class are multiples of where they are divided by the norms of the weights.

weights: [D, C]; or [C, D] if class_major.
class_major: whether the weights of a class are a row of `weights`, and not a column.
class_factors: [C], 1 / |w_c|, or 0 of a zero column, in float32, or in float64 for weights of it.
)doc");

REGISTER_OP("LsoftmaxFeaturesGrad")
    .Input("products_features_grad: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("geometry_grad: double")
    .Input("loss_grad: T")
    .Input("grad_unit: float")
    .Input("target_weights: T")
    .Output("features_grad: T")
    .Attr("normalize_features: bool = false")
    .Attr("first_class: int >= 0 = 0")
    .Attr("num_classes: int >= 0 = 0")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of LsoftmaxTargetGeometry, and with it of LsoftmaxLossWithGradient, in its features.

products_features_grad: [N, D], the gradient that reached `same_features`.
features: [N, D].
weights: [D, C]; or [C, D] if class_major.
labels: [N].
geometry_grad: [3, N], the gradient that reached `geometry`.
loss_grad: [N], the upstream gradient of a loss, by which the two above are still to be multiplied; [0] for none.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxFinish, what the two above are multiples of; [0] for none.
target_weights: [N, D], of LsoftmaxLoss, or [0]: the columns are read from `weights`.
normalize_features: whether the part of products_features_grad along each sample is taken off it first.
first_class: as for LsoftmaxTargetGeometry; a row whose target is not at hand is like one without a target.
num_classes: as for LsoftmaxTargetGeometry.
class_major: whether the weights of a class are a row of `weights`, and not a column.
features_grad: [N, D].
)doc");

REGISTER_OP("LsoftmaxWeightsGrad")
    .Input("products_weights_grad: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("geometry_grad: double")
    .Input("loss_grad: T")
    .Input("grad_unit: float")
    .Input("target_weights: T")
    .Output("weights_grad: T")
    .Attr("normalize_weights: bool = false")
    .Attr("first_class: int >= 0 = 0")
    .Attr("num_classes: int >= 0 = 0")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The gradient of LsoftmaxTargetGeometry, and with it of LsoftmaxLossWithGradient, in its weights.

products_weights_grad: [D, C] as `weights`, the gradient that reached `same_weights`.
features: [N, D].
weights: [D, C]; or [C, D] if class_major.
labels: [N].
geometry_grad: [3, N], the gradient that reached `geometry`.
loss_grad: [N], the upstream gradient of a loss, by which `geometry_grad` is still to be multiplied; [0] for none.
grad_unit: [N], of LsoftmaxLoss or LsoftmaxFinish, what `geometry_grad` is a multiple of; [0] for none.
target_weights: [N, D], of LsoftmaxLoss, or [0]: the columns are read from `weights`.
normalize_weights: whether the part of products_weights_grad along each class's weights is taken off it first.
first_class: as for LsoftmaxTargetGeometry; a row whose target is not at hand is like one without a target.
num_classes: as for LsoftmaxTargetGeometry.
class_major: whether the weights of a class are a row of `weights`, and not a column.
weights_grad: [D, C] as `weights`.
)doc");

constexpr InPlace kFeaturesGrad = {"products_features_grad", "features_grad", InPlace::kChanged};
constexpr InPlace kWeightsGrad = {"products_weights_grad", "weights_grad", InPlace::kChanged};

template <typename Backend, typename T>
using TargetGeometry = KernelOp<Backend, T, Kernel::geometry, kNowhere>;
template <typename Backend, typename T>
using ClassFactors = KernelOp<Backend, T, Kernel::class_factors, kNowhere>;
template <typename Backend, typename T>
using FeaturesGrad = KernelOp<Backend, T, Kernel::features_grad, kFeaturesGrad>;
template <typename Backend, typename T>
using WeightsGrad = KernelOp<Backend, T, Kernel::weights_grad, kWeightsGrad>;

LSOFTMAX_REGISTER_KERNELS("LsoftmaxTargetGeometry", TargetGeometry);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxClassFactors", ClassFactors);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxFeaturesGrad", FeaturesGrad);
LSOFTMAX_REGISTER_KERNELS("LsoftmaxWeightsGrad", WeightsGrad);

}  // namespace
}  // namespace lsoftmax

// LsoftmaxLoss: the cross-entropy of the margin logits, and its gradient, in one pass over the products X W [N, C]
//
//   loss[i]             = log(sum_j exp(z_ij)) - z_{i, y_i}          with z the margin logits, bias included
//   products_grad[i, j] = dloss[i] / dz_ij                           0 at the target
//   target_grad[i]      = dloss[i] / dz_{i, y_i}
//   geometry_grad[:, i] = target_grad[i] dt / d(geometry[:, i])      core/softmax.h has the formulas
//
// the last three, of float16, in units of grad_unit[i] (core/grad_unit.h): divided by it.
//
// The products' gradient is in their own buffer where TensorFlow gives it away.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLoss")
    .Input("products: T")
    .Input("features: T")
    .Input("weights: T")
    .Input("labels: Tlabels")
    .Input("bias: T")
    .Input("lam: double")
    .Output("loss: T")
    .Output("products_grad: T")
    .Output("geometry: double")
    .Output("geometry_grad: double")
    .Output("target_grad: double")
    .Output("target_weights: T")
    .Output("predicted: int64")
    .Output("grad_unit: float")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products, features, weights, labels;
      TF_RETURN_IF_ERROR(merge_layer(c, 1, &features, &weights, &labels));
      TF_RETURN_IF_ERROR(merge_input(c, 0, "products", {c->Dim(labels, 0), c->Dim(weights, 1)}, &products));
      const ShapeHandle geometry = c->Matrix(3, c->Dim(labels, 0));
      int output = 0;
      for (const ShapeHandle& shape : {labels, products, geometry, geometry, labels, features, labels, labels}) {
        c->set_output(output++, shape);
      }
      return absl::Status();
    })
    .Doc(R"doc(
The softmax cross-entropy of Large-Margin Softmax (Liu et al., ICML 2016, equations 3 to 6), and its gradient.

products: [N, C], `features` times `weights`.
features: [N, D].
weights: [D, C], a column for every class.
labels: [N], each in [0, C), or -1 for a row whose loss and gradient are 0.
bias: [C], or [0] for none.
lam: [], the annealing weight lambda >= 0; at infinity the margin vanishes.
margin: m, from 1 (no margin) to 64.
loss: [N].
products_grad: [N, C], the derivative of each row's loss in its products, in units of grad_unit, but 0 at its target.
geometry: [3, N], the inner product of the sample and its class's weights, and both squared norms.
geometry_grad: [3, N], the derivative of each row's loss in its geometry, the target's share, in units of grad_unit.
target_grad: [N], the derivative of each row's loss in its target's logit, in units of grad_unit.
target_weights: [N, D], the weights of each row's class, 0 without a target.
predicted: [N], the class of the largest logit without the margin.
grad_unit: [N], 1 but for float16, whose units are powers of two.
)doc");

template <typename Backend, typename T>
class LossOp : public OpKernel {
 public:
  explicit LossOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& products = context->input(0);
    Inputs<Core<T>> args;
    args.margin = margin_;
    OP_REQUIRES_OK(context, read_layer<Backend, T>(context, 1, &args));
    OP_REQUIRES_OK(context, check_shape("products", products, {args.rows, args.classes}));
    args.products = data_of<T>(products);

    Tensor *loss, *products_grad, *geometry, *geometry_grad, *target_grad, *target_weights, *predicted, *grad_unit;
    const TensorShape rows({args.rows}), triples({3, args.rows});
    OP_REQUIRES_OK(context, context->allocate_output(0, rows, &loss));
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output({0}, 1, products.shape(), &products_grad));
    OP_REQUIRES_OK(context, context->allocate_output(2, triples, &geometry));
    OP_REQUIRES_OK(context, context->allocate_output(3, triples, &geometry_grad));
    OP_REQUIRES_OK(context, context->allocate_output(4, rows, &target_grad));
    OP_REQUIRES_OK(context, context->allocate_output(5, {args.rows, args.depth}, &target_weights));
    OP_REQUIRES_OK(context, context->allocate_output(6, rows, &predicted));
    OP_REQUIRES_OK(context, context->allocate_output(7, rows, &grad_unit));
    args.loss = data_of<T>(loss);
    args.logits_grad = data_of<T>(products_grad);
    args.geometry = data_of<double>(geometry);
    args.geometry_grad = data_of<double>(geometry_grad);
    args.target_grad = data_of<double>(target_grad);
    args.target_weights = data_of<T>(target_weights);
    args.predicted = data_of<int64_t>(predicted);
    args.grad_unit = data_of<float>(grad_unit);
    Backend::geometry_and_loss(context, args);
  }

 private:
  int margin_ = 1;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLoss", LossOp);

}  // namespace lsoftmax

// LsoftmaxLogitsGrad: dL/d(margin logits) [N, C], labels, geometry, lam  ->  dL/d(products), dL/d(geometry) [3, N]
//
//   geometry_grad[:, i]   = g_i (dt/ds, dt/dA, dt/dB)     with g_i = logits_grad[i, y_i]
//   products_grad[i, y_i] = 0
//
// and every other entry of products_grad is that of logits_grad, in its buffer where TensorFlow gives it away.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLogitsGrad")
    .Input("logits_grad: T")
    .Input("labels: Tlabels")
    .Input("geometry: double")
    .Input("lam: double")
    .Output("products_grad: T")
    .Output("geometry_grad: double")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle logits, geometry, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "logits_grad", {c->UnknownDim(), c->UnknownDim()}, &logits));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "labels", {c->Dim(logits, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 2, "geometry", {3, c->Dim(logits, 0)}, &geometry));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "lam", {}, &ignored));
      c->set_output(0, logits);
      c->set_output(1, geometry);
      return absl::Status();
    })
    .Doc(R"doc(
The gradient of LsoftmaxLogits.

logits_grad: [N, C], the loss's derivative in the margin logits.
labels: [N].
geometry: [3, N].
lam: [], the annealing weight lambda.
products_grad: [N, C], the loss's derivative in the products: 0 at a target with a margin.
geometry_grad: [3, N], the loss's derivative in the geometry.
)doc");

template <typename Backend, typename T>
class LogitsGradOp : public OpKernel {
 public:
  explicit LogitsGradOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compute(OpKernelContext* context) override {
    Inputs<Core<T>> args;
    args.margin = margin_;
    OP_REQUIRES_OK(context, read_targets<Backend>(context, "logits_grad", &args));

    Tensor *products_grad = nullptr, *geometry_grad = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &products_grad));
    OP_REQUIRES_OK(context, context->allocate_output(1, context->input(2).shape(), &geometry_grad));
    args.geometry_grad = data_of<double>(geometry_grad);
    args.logits_grad = data_of<T>(products_grad);
    Backend::logits_grad(context, args);
  }

 private:
  int margin_ = 1;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLogitsGrad", LogitsGradOp);

}  // namespace lsoftmax

// LsoftmaxLogits: products X W [N, C], labels [N], geometry [3, N], lam []  ->  margin logits [N, C]
//
//   logits[i, y_i] = t(geometry[:, i])     with t from core/margin.h; every other entry stays as it is
//
// in the products' own buffer where TensorFlow gives it away. t is computed from the geometry, not from the
// product: a product in TF32 or bfloat16 does not bend the margin.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxLogits")
    .Input("products: T")
    .Input("labels: Tlabels")
    .Input("geometry: double")
    .Input("lam: double")
    .Output("logits: T")
    .Attr("margin: int >= 1")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle products, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "products", {c->UnknownDim(), c->UnknownDim()}, &products));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "labels", {c->Dim(products, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 2, "geometry", {3, c->Dim(products, 0)}, &ignored));
      TF_RETURN_IF_ERROR(merge_input(c, 3, "lam", {}, &ignored));
      c->set_output(0, products);
      return absl::Status();
    })
    .Doc(R"doc(
The logits of Large-Margin Softmax (Liu et al., ICML 2016, equations 4 to 6).

products: [N, C], features times weights, without a bias.
labels: [N], each in [0, C), or -1 for a row that stays as it is.
geometry: [3, N], from LsoftmaxTargetGeometry of the same features, weights and labels.
lam: [], the annealing weight lambda >= 0; at infinity the margin vanishes.
margin: m, from 1 (no margin) to 64.
logits: [N, C], `products` with the target's entry of each row replaced.
)doc");

template <typename Backend, typename T>
class LogitsOp : public OpKernel {
 public:
  explicit LogitsOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compute(OpKernelContext* context) override {
    Inputs<Core<T>> args;
    args.margin = margin_;
    OP_REQUIRES_OK(context, read_targets<Backend>(context, "products", &args));

    Tensor* logits = nullptr;
    OP_REQUIRES_OK(context, Backend::template take_or_copy<T>(context, 0, &logits));
    args.logits = data_of<T>(logits);
    Backend::logits(context, args);
  }

 private:
  int margin_ = 1;
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxLogits", LogitsOp);

}  // namespace lsoftmax

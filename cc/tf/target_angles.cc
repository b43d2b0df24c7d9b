// LsoftmaxTargetAngles: labels [N], geometry [3, N]  ->  cos(theta) [N], segment k [N]
//
//   cos(theta) = x . w_y / (|x||w_y|)      k: theta lies in [k pi/m, (k+1) pi/m]
//
// What a person wants to watch while training. Not differentiable.
#include "tf/register.h"

namespace lsoftmax {

REGISTER_OP("LsoftmaxTargetAngles")
    .Input("labels: Tlabels")
    .Input("geometry: double")
    .Output("cos_theta: double")
    .Output("segment: int32")
    .Attr("margin: int >= 1")
    .Attr("Tlabels: {int32, int64}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle labels, ignored;
      TF_RETURN_IF_ERROR(merge_input(c, 0, "labels", {c->UnknownDim()}, &labels));
      TF_RETURN_IF_ERROR(merge_input(c, 1, "geometry", {3, c->Dim(labels, 0)}, &ignored));
      c->set_output(0, labels);
      c->set_output(1, labels);
      return absl::Status();
    })
    .Doc(R"doc(
The angle between every sample and the weights of its class.

labels: [N], each in [0, C), or -1 for a sample without a target.
geometry: [3, N], from LsoftmaxTargetGeometry.
cos_theta: [N], within [-1, 1]; 0 where a norm is zero; NaN without a target.
segment: [N], k from 0 to margin - 1; -1 without a target.
)doc");

template <typename Backend>
class TargetAnglesOp : public OpKernel {
 public:
  explicit TargetAnglesOp(OpKernelConstruction* construction) : OpKernel(construction) {
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& labels = context->input(0);
    Tensor geometry = context->input(1);
    OP_REQUIRES_OK(context, check_shape("labels", labels, {-1}));
    Arguments<double> args;
    args.rows = labels.dim_size(0);
    args.margin = margin_;
    OP_REQUIRES_OK(context, check_shape("geometry", geometry, {3, args.rows}));

    Tensor *cos_theta = nullptr, *segment = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, labels.shape(), &cos_theta));
    OP_REQUIRES_OK(context, context->allocate_output(1, labels.shape(), &segment));
    args.labels = labels_of(labels);
    args.geometry = data_of<double>(&geometry);
    args.cos_theta = data_of<double>(cos_theta);
    args.segment = data_of<int32_t>(segment);
    Backend::angles(context, args);
  }

 private:
  int margin_ = 1;
};

REGISTER_KERNEL_BUILDER(Name("LsoftmaxTargetAngles").Device(tensorflow::DEVICE_CPU), TargetAnglesOp<Cpu>);
#ifdef LSOFTMAX_CUDA
REGISTER_KERNEL_BUILDER(Name("LsoftmaxTargetAngles").Device(tensorflow::DEVICE_GPU), TargetAnglesOp<Gpu>);
#endif

}  // namespace lsoftmax

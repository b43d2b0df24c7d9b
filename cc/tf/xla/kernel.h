// An XLA kernel is a function of its inputs that writes HLO. Here they are read, as tf/inputs.h does for the other devices.
#ifndef LSOFTMAX_TF_XLA_KERNEL_H_
#define LSOFTMAX_TF_XLA_KERNEL_H_

#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tf/inputs.h"
#include "tf/xla/hlo.h"

namespace lsoftmax {

using tensorflow::XlaOpKernelContext;

// The input that the op calls so; -1 in `expected` is any size.
absl::Status read(XlaOpKernelContext* context, const char* argument, std::initializer_list<int64_t> expected,
                  XlaOp* input);

// The inputs "features", "weights" and "labels".
struct Batch {
  XlaOp features, weights;
  Targets targets;
  int64_t depth;
};
absl::Status read_batch(XlaOpKernelContext* context, Batch* batch);

// The shapes of the inputs, for the checks of tf/inputs.h.
inline auto shapes_of(XlaOpKernelContext* context) {
  return [context](int index) { return context->InputShape(index); };
}

// A matrix [N, C] of the given name, and the input "labels".
struct Rows {
  XlaOp matrix;
  Targets targets;
};
absl::Status read_rows(XlaOpKernelContext* context, const char* argument, Rows* rows);

// The same of a block of classes, from the input "first_class" on. Where that is no class, the matrix is NaN.
absl::Status read_block(XlaOpKernelContext* context, const char* argument, Rows* rows);

// The input "bias", [C], which may also be [0] for none.
struct Bias {
  bool is_there = false;
  XlaOp values;

  XlaOp added_to(XlaOp products) const;           // the plain logits, in the type that they are computed in
  XlaOp of_target(const Targets& targets) const;  // [N], F64
};
absl::Status read_bias(XlaOpKernelContext* context, int64_t classes, Bias* bias);

// The inputs "features", "weights", "labels", "bias" and "lam".
struct Layer {
  Batch batch;
  Bias bias;
  XlaOp lambda;
};
absl::Status read_layer(XlaOpKernelContext* context, Layer* layer);

// The inputs "loss_grad" times "grad_unit", both [N], in the type that halves are computed in.
absl::Status read_loss_grad(XlaOpKernelContext* context, int64_t rows, XlaOp* loss_grad);

// The inputs "matrix" [D, width], "block" [D, count] and "first_column".
struct Columns {
  XlaOp matrix, block, first;
  int64_t count, width;
};
absl::Status read_columns(XlaOpKernelContext* context, Columns* columns);

template <absl::Status (*kCompile)(XlaOpKernelContext*, int margin)>
class XlaKernel : public tensorflow::XlaOpKernel {
 public:
  explicit XlaKernel(tensorflow::OpKernelConstruction* construction) : XlaOpKernel(construction) {
    if (construction->HasAttr("margin")) OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
  }

  void Compile(XlaOpKernelContext* context) override { OP_REQUIRES_OK(context, kCompile(context, margin_)); }

 private:
  int margin_ = 1;
};

}  // namespace lsoftmax

// Not by REGISTER_XLA_OP: TensorFlow looks at its registrations once, when a process first compiles anything, and a
// library that is loaded later would go unseen.
#define LSOFTMAX_REGISTER_XLA_ON(DEVICE, OP, ...) \
  REGISTER_KERNEL_BUILDER(Name(OP).Device("XLA_" DEVICE "_JIT"), ::lsoftmax::XlaKernel<__VA_ARGS__>)
#define LSOFTMAX_REGISTER_XLA(OP, COMPILE)      \
  LSOFTMAX_REGISTER_XLA_ON("CPU", OP, COMPILE); \
  LSOFTMAX_REGISTER_XLA_ON("GPU", OP, COMPILE)

#endif  // LSOFTMAX_TF_XLA_KERNEL_H_

// An XLA kernel is a function of its op in hand that writes HLO.
#ifndef LSOFTMAX_TF_XLA_KERNEL_H_
#define LSOFTMAX_TF_XLA_KERNEL_H_

#include <optional>

#include "tensorflow/compiler/tf2xla/xla_op_registry.h"
#include "tf/inputs.h"
#include "tf/xla/rows.h"

namespace lsoftmax {

// An op in hand: its inputs and outputs by their names. The inputs have been checked, as tf/inputs.h does everywhere.
class Node {
 public:
  Node(tensorflow::XlaOpKernelContext* context, const Signature* signature, const Margin& margin,
       const ClassRange& range, bool on_gpu)
      : margin(margin), range(range), on_gpu(on_gpu), context(context), signature_(signature) {}
  absl::Status check();

  // An input; and whether it is there: the op may have none of this name, and it may be none.
  XlaOp in(const char* name) const { return context->Input(name); }
  bool has(const char* name) const {
    const int input = signature_->input(name);
    return input >= 0 && shape_of(input).num_elements() > 0;
  }
  std::optional<XlaOp> in_if_any(const char* name) const { return has(name) ? std::optional(in(name)) : std::nullopt; }
  void out(const char* name, XlaOp value) const { context->SetOutput(signature_->output(name), value); }
  const Signature& signature() const { return *signature_; }
  bool class_major() const { return signature_->class_major(); }

  // Where the labels point, among the classes at hand; or among those from the input "first_class" on.
  Targets targets() const;
  Targets targets_of_block() const;

  // A matrix of a block of classes; NaN where its first class is none.
  XlaOp block(const char* name) const;

  // The margin's terms, each [], if it has some.
  std::optional<Terms<Rows>> terms() const;

  // The plain logits, in the type that they are computed in: the products, plus the bias where there is one; or where
  // there are class_factors times these, and times the rows' factors (core/margin.h), which follow from the geometry
  // [3, N].
  XlaOp plain_logits(const Targets& targets, XlaOp products, XlaOp geometry) const;

  // The weights of each row's target, [N, D]; 0 where it is not here.
  XlaOp target_weights(const Targets& targets) const;

  // The bias of each row's target, [N], F64.
  XlaOp target_bias(const Targets& targets) const;

  // The op's data type T; and whether gradients of it have units (core/grad_unit.h).
  ::xla::PrimitiveType real() const;
  bool has_grad_unit() const { return real() == ::xla::F16; }

  // loss_grad times grad_unit, [N], in the type that halves are computed in; [], 1 if it is none.
  XlaOp upstream() const;

  XlaOp constant(double value) const { return ::xla::ConstantR0<double>(context->builder(), value); }

  const Margin margin;
  const ClassRange range;
  const bool on_gpu;
  Sizes sizes;
  tensorflow::XlaOpKernelContext* const context;

 private:
  tensorflow::TensorShape shape_of(int input) const;

  const Signature* signature_;
};

template <absl::Status (*kCompile)(const Node&)>
class XlaKernel : public tensorflow::XlaOpKernel {
 public:
  explicit XlaKernel(tensorflow::OpKernelConstruction* construction)
      : XlaOpKernel(construction),
        signature_(*this, construction),
        on_gpu_(construction->device_type() == tensorflow::DeviceType("XLA_GPU_JIT")) {
    OP_REQUIRES_OK(construction, check_wide(construction));
    OP_REQUIRES_OK(construction, read_margin(construction, &margin_));
    OP_REQUIRES_OK(construction, read_range(construction, &range_));
  }

  void Compile(tensorflow::XlaOpKernelContext* context) override {
    Node node(context, &signature_, margin_, range_, on_gpu_);
    OP_REQUIRES_OK(context, node.check());
    OP_REQUIRES_OK(context, kCompile(node));
  }

 private:
  const Signature signature_;
  const bool on_gpu_;
  Margin margin_;
  ClassRange range_;
};

}  // namespace lsoftmax

// Not by REGISTER_XLA_OP: TensorFlow looks at its registrations once, when a process first compiles anything, and a
// library that is loaded later would go unseen.
#define LSOFTMAX_REGISTER_XLA_ON_(DEVICE, OP, ...) \
  REGISTER_KERNEL_BUILDER(Name(OP).Device(DEVICE), ::lsoftmax::XlaKernel<__VA_ARGS__>)
#define LSOFTMAX_REGISTER_XLA(OP, ...)                       \
  LSOFTMAX_REGISTER_XLA_ON_("XLA_CPU_JIT", OP, __VA_ARGS__); \
  LSOFTMAX_REGISTER_XLA_ON_("XLA_GPU_JIT", OP, __VA_ARGS__)

#endif  // LSOFTMAX_TF_XLA_KERNEL_H_

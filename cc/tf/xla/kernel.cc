#include "tf/xla/kernel.h"

#include <limits>

#include "tensorflow/compiler/tf2xla/type_util.h"

namespace lsoftmax {

absl::Status Node::check() {
  return signature_->check([this](int input) { return shape_of(input); }, &sizes);
}

tensorflow::TensorShape Node::shape_of(int input) const {
  // Deprecated in TensorFlow 2.21 for shapes that are not known, of which this gives the bounds.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return context->InputShape(input);
#pragma GCC diagnostic pop
}

Targets Node::targets() const { return targets_of(in("labels"), sizes.rows(), sizes.classes()); }

Targets Node::targets_of_block() const {
  return lsoftmax::targets_of(in("labels"), sizes.rows(), sizes.classes(), in("first_class"));
}

XlaOp Node::block(const char* name) const {
  const XlaOp fits = is_first(in("first_class"), sizes.classes(), std::numeric_limits<int64_t>::max());
  return where(fits, in(name), std::numeric_limits<double>::quiet_NaN());
}

XlaOp Node::plain_logits(XlaOp products) const {
  return has("bias") ? ::xla::Add(widen(products), widen(in("bias")), {1}) : widen(products);
}

XlaOp Node::target_bias(const Targets& targets) const {
  return has("bias") ? to_double(element_at(targets, in("bias"))) : constant(0);
}

::xla::PrimitiveType Node::real() const {
  tensorflow::DataType type;
  ::xla::PrimitiveType real = ::xla::F32;
  if (GetNodeAttr(context->op_kernel_context()->op_kernel().def(), "T", &type).ok()) {
    tensorflow::DataTypeToPrimitiveType(type, &real).IgnoreError();
  }
  return real;
}

XlaOp Node::upstream() const {
  if (!has("loss_grad")) return constant(1);
  return has("grad_unit") && has_grad_unit() ? widen(in("loss_grad")) * in("grad_unit") : widen(in("loss_grad"));
}

}  // namespace lsoftmax

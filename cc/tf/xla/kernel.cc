#include "tf/xla/kernel.h"

#include <algorithm>
#include <limits>

#include "tensorflow/compiler/tf2xla/type_util.h"

namespace lsoftmax {

absl::Status Node::check() {
  TF_RETURN_IF_ERROR(signature_->check([this](int input) { return shape_of(input); }, &sizes));
  TF_RETURN_IF_ERROR(status_of(judge(range, std::max<int64_t>(0, sizes.classes()))));
  const auto given = [this](const char* name) { return Given{signature_->input(name) >= 0, has(name)}; };
  return status_of(judge(margin, given("terms"), given("class_factors"), has("bias")));
}

tensorflow::TensorShape Node::shape_of(int input) const {
  // Deprecated in TensorFlow 2.21 for shapes that are not known, of which this gives the bounds.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  return context->InputShape(input);
#pragma GCC diagnostic pop
}

Targets Node::targets() const { return targets_of(in("labels"), sizes.rows(), sizes.classes(), range); }

Targets Node::targets_of_block() const {
  return lsoftmax::targets_of(in("labels"), sizes.rows(), sizes.classes(), in("first_class"));
}

XlaOp Node::block(const char* name) const {
  const XlaOp fits = is_first(in("first_class"), sizes.classes(), std::numeric_limits<int64_t>::max());
  return where(fits, in(name), std::numeric_limits<double>::quiet_NaN());
}

std::optional<Terms<Rows>> Node::terms() const {
  if (!has("terms")) return std::nullopt;
  const auto term = [terms = in("terms")](int64_t n) -> Rows {
    return ::xla::Reshape(::xla::SliceInDim(terms, n, n + 1, 1, 0), {});
  };
  return Terms<Rows>{term(0), term(1), term(2), term(3), term(4), term(5), term(6)};
}

XlaOp Node::plain_logits(const Targets& targets, XlaOp products, XlaOp geometry) const {
  const XlaOp wide = widen(products);
  if (has("bias")) return ::xla::Add(wide, widen(in("bias")), {1});
  if (!has("class_factors")) return wide;
  const Terms<Rows> terms = *this->terms();
  // Without a target there is no geometry, and of the logits nothing is wanted but which is the largest.
  const Rows of_target = row_factor<Rows>(margin, terms, row_of(geometry, 1, targets.rows));
  const XlaOp of_row = where(Rows(targets.none), terms.scale, of_target);
  return ::xla::Mul(::xla::Mul(wide, to_type_of(wide, of_row), kByRow), in("class_factors"), {1});
}

XlaOp Node::target_weights(const Targets& targets) const {
  return column_at(targets, in("weights"), sizes.depth(), class_major());
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

// The ops of tf/filter.cc in HLO, in which no size may depend on data: no class is left out.
#include <limits>

#include "tf/xla/kernel.h"

namespace lsoftmax {
namespace hlo {
namespace {

// All classes: their gradients are the dense ones, to the bit.
absl::Status kept_classes(const Node& node) {
  node.out("kept", ::xla::ConstantR1<int64_t>(node.context->builder(), absl::Span<const int64_t>()));
  return absl::Status();
}

Targets columns_of(const Node& node) {
  return targets_of(node.in("columns"), node.sizes.block(), node.sizes.classes());
}

// Rows of a class each, as the op's matrices have them.
XlaOp in_layout(const Node& node, XlaOp rows) { return node.class_major() ? rows : ::xla::Transpose(rows, {1, 0}); }

absl::Status take_columns(const Node& node) {
  const XlaOp matrix = node.in("matrix");
  if (!node.has("columns")) {
    node.out("block", matrix);
    return absl::Status();
  }
  const Targets columns = columns_of(node);
  const int64_t depth = node.sizes.depth();
  const XlaOp here = as_columns(columns.here, columns.rows, depth);
  const XlaOp taken = column_at(columns, matrix, depth, node.class_major());
  node.out("block", in_layout(node, where(here, taken, std::numeric_limits<double>::quiet_NaN())));
  return absl::Status();
}

absl::Status spread_columns(const Node& node) {
  const XlaOp block = node.in("block");
  const int64_t depth = node.sizes.depth(), width = node.sizes.block(), classes = node.sizes.classes();
  if (!node.has("columns")) {
    TF_RETURN_IF_ERROR(check_first("columns", 0, width, classes));
    const int64_t of_classes = node.class_major() ? 0 : 1;
    node.out("new_matrix", ::xla::PadInDim(block, number(block, 0), of_classes, 0, classes - width));
    return absl::Status();
  }
  const Targets columns = columns_of(node);
  // Where each class is in the block; beyond it, if nowhere.
  const XlaOp place = first_true(::xla::Transpose(is_target(columns), {1, 0}), classes, width);
  const XlaOp taken = column_at(targets_of(place, classes, width), block, depth, node.class_major());
  const XlaOp zeros = ::xla::Broadcast(number(block, 0), {width});
  const XlaOp bad = sum_over(0, where(columns.here, zeros, std::numeric_limits<double>::quiet_NaN()));  // NaN, or 0
  node.out("new_matrix", in_layout(node, taken) + bad);
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxKeptClasses", kept_classes);
LSOFTMAX_REGISTER_XLA("LsoftmaxTakeColumns", take_columns);
LSOFTMAX_REGISTER_XLA("LsoftmaxSpreadColumns", spread_columns);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

#include "tf/xla/calls.h"

#include <stdlib.h>
#include <string.h>

#include "absl/strings/str_cat.h"
#include "tf/xla/handlers.h"

namespace lsoftmax {

namespace {

using ::xla::Shape;
using ::xla::ShapeUtil;

// Operands and results lie in memory as they do for every other kernel: row by row.
Shape dense(::xla::PrimitiveType type, absl::Span<const int64_t> dimensions) {
  return ShapeUtil::MakeShapeWithDescendingLayout(type, dimensions);
}

::xla::PrimitiveType type_of(const Array& array, ::xla::PrimitiveType real) {
  switch (array.element) {
    case Element::kDouble:
      return ::xla::F64;
    case Element::kFloat:
      return ::xla::F32;
    case Element::kInt64:
      return ::xla::S64;
    case Element::kInt32:
      return ::xla::S32;
    default:
      return real;
  }
}

// A handler's results, as a tuple. The first one takes the first operand's buffer.
XlaOp call(const std::string& handler, const std::vector<XlaOp>& operands, const std::vector<Shape>& results,
           const std::string& attributes, bool in_place) {
  ::xla::XlaBuilder* const builder = operands[0].builder();
  std::vector<Shape> shapes;
  for (const XlaOp operand : operands) {
    const Shape shape = builder->GetShape(operand).value();
    shapes.push_back(dense(shape.element_type(), shape.dimensions()));
  }
  std::vector<std::pair<::xla::ShapeIndex, std::pair<int64_t, ::xla::ShapeIndex>>> aliases;
  if (in_place) aliases.push_back({{0}, {0, {}}});
  return ::xla::CustomCallWithLayout(builder, handler, operands, ShapeUtil::MakeTupleShape(results), shapes, attributes,
                                     /*has_side_effect=*/false, aliases, /*literal=*/nullptr,
                                     ::xla::CustomCallSchedule::SCHEDULE_NONE,
                                     ::xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
}

absl::Status call(const Node& node, const Call& what) {
  std::vector<XlaOp> operands = {node.context->Input(0)};  // which the op calls by another name
  for (size_t i = 1; i < what.operands.size() && what.operands[i] != nullptr; ++i) {
    operands.push_back(node.in(what.operands[i]));
  }
  const ::xla::PrimitiveType real = node.context->input_xla_type(0);
  std::vector<Shape> results;
  for (const char* const name : what.results) {
    if (name == nullptr) break;
    const Array& array = kArrays[number_of(name)];
    results.push_back(dense(type_of(array, real), shape_in(array, node.sizes).dim_sizes()));
  }
  const std::string handler = absl::StrCat(what.handler, "_", ::xla::PrimitiveType_Name(real));
  const XlaOp all =
      call(handler, operands, results, absl::StrCat("{margin = ", node.margin.m, " : i64}"), /*in_place=*/true);
  for (size_t i = 0; i < results.size(); ++i) node.out(what.results[i], ::xla::GetTupleElement(all, i));
  return absl::Status();
}

}  // namespace

bool can_call(const Node& node) {
#ifdef LSOFTMAX_XLA_HANDLERS
  const char* const calls = getenv("LSOFTMAX_XLA_CALLS");
  if (calls != nullptr && strcmp(calls, "OFF") == 0) return false;
  for (int i = 0; i < node.context->num_inputs(); ++i) {
    const auto shape = node.context->builder()->GetShape(node.context->Input(i));
    if (!shape.ok() || !shape->is_static()) return false;
  }
  return true;
#else
  (void)node;
  return false;
#endif
}

absl::Status call_loss(const Node& node) { return call(node, kLossCall); }
absl::Status call_features_grad(const Node& node) { return call(node, kFeaturesGradCall); }
absl::Status call_weights_grad(const Node& node) { return call(node, kWeightsGradCall); }

// XLA's own update in place, at a column that a call has checked.
absl::Status call_set_columns(const Node& node) {
  if (node.sizes.block() > node.sizes.classes())
    return check_first("first_column", 0, node.sizes.block(), node.sizes.classes());
  const std::string attributes =
      absl::StrCat("{count = ", node.sizes.block(), " : i64, width = ", node.sizes.classes(), " : i64}");
  const XlaOp first = ::xla::GetTupleElement(
      call(kFirstColumnHandler, {node.in("first_column")}, {dense(::xla::S64, {})}, attributes, /*in_place=*/false), 0);
  node.out("new_matrix", ::xla::DynamicUpdateSlice(node.in("matrix"), node.in("block"), {number(first, 0), first}));
  return absl::Status();
}

}  // namespace lsoftmax

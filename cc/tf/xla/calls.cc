#include "tf/xla/calls.h"

#include <stdlib.h>
#include <string.h>

#include "absl/strings/str_cat.h"

namespace lsoftmax {

namespace {

using ::xla::Shape;
using ::xla::ShapeUtil;

// Operands and results lie in memory as they do for every other kernel: row by row.
Shape dense(const Shape& shape) {
  return ShapeUtil::MakeShapeWithDescendingLayout(shape.element_type(), shape.dimensions());
}

// Calls the handler `name` of the first operand's data type. Output `in_place` takes the first operand's buffer.
XlaOp call(const char* name, const std::vector<XlaOp>& operands, const std::vector<Shape>& outputs, int64_t in_place,
           const std::string& attributes) {
  ::xla::XlaBuilder* const builder = operands[0].builder();
  std::vector<Shape> shapes;
  for (const XlaOp operand : operands) shapes.push_back(dense(builder->GetShape(operand).value()));
  const bool one = outputs.size() == 1;
  const ::xla::ShapeIndex output = one ? ::xla::ShapeIndex{} : ::xla::ShapeIndex{in_place};
  return ::xla::CustomCallWithLayout(
      builder, absl::StrCat(name, "_", ::xla::PrimitiveType_Name(shapes[0].element_type())), operands,
      one ? outputs[0] : ShapeUtil::MakeTupleShape(outputs), shapes, attributes,
      /*has_side_effect=*/false, {{output, {0, {}}}}, /*literal=*/nullptr, ::xla::CustomCallSchedule::SCHEDULE_NONE,
      ::xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
}

absl::Status call_grad(XlaOpKernelContext* context, const char* name, const char* products, bool of_features) {
  Layer layer;
  XlaOp gradient, loss_grad, geometry_grad, grad_unit;
  TF_RETURN_IF_ERROR(read_layer(context, &layer));
  const Batch& batch = layer.batch;
  const int64_t rows = batch.targets.rows, depth = batch.depth;
  const int64_t height = of_features ? rows : depth, width = of_features ? depth : batch.targets.classes;
  TF_RETURN_IF_ERROR(read(context, products, {height, width}, &gradient));
  TF_RETURN_IF_ERROR(read(context, "loss_grad", {rows}, &loss_grad));
  TF_RETURN_IF_ERROR(read(context, "geometry_grad", {3, rows}, &geometry_grad));
  TF_RETURN_IF_ERROR(read(context, "grad_unit", {rows}, &grad_unit));
  const XlaOp target_weights = context->Input("target_weights");
  TF_RETURN_IF_ERROR(check_target_weights(context->InputShape("target_weights"), rows, depth));
  const std::vector<XlaOp> operands = {gradient,  batch.features, batch.weights,  context->Input("labels"),
                                       loss_grad, geometry_grad,  target_weights, grad_unit};
  const Shape shape = ShapeUtil::MakeShapeWithDescendingLayout(context->input_xla_type(0), {height, width});
  context->SetOutput(0, call(name, operands, {shape}, 0, /*attributes=*/""));
  return absl::Status();
}

}  // namespace

bool can_call(XlaOpKernelContext* context) {
#ifdef LSOFTMAX_XLA_HANDLERS
  const char* const calls = getenv("LSOFTMAX_XLA_CALLS");
  if (calls != nullptr && strcmp(calls, "OFF") == 0) return false;
  for (int i = 0; i < context->num_inputs(); ++i) {
    const auto shape = context->builder()->GetShape(context->Input(i));
    if (!shape.ok() || !shape->is_static()) return false;
  }
  return true;
#else
  return false;
#endif
}

absl::Status call_loss(XlaOpKernelContext* context, int margin) {
  Layer layer;
  XlaOp products;
  TF_RETURN_IF_ERROR(read_layer(context, &layer));
  const Batch& batch = layer.batch;
  const int64_t rows = batch.targets.rows, classes = batch.targets.classes;
  TF_RETURN_IF_ERROR(read(context, "products", {rows, classes}, &products));

  const ::xla::PrimitiveType type = context->input_xla_type(0);
  const auto shape = [](::xla::PrimitiveType type, std::initializer_list<int64_t> sizes) {
    return ShapeUtil::MakeShapeWithDescendingLayout(type, sizes);
  };
  const std::vector<Shape> outputs = {shape(type, {rows}),          shape(type, {rows, classes}),
                                      shape(::xla::F64, {3, rows}), shape(::xla::F64, {3, rows}),
                                      shape(::xla::F64, {rows}),    shape(type, {rows, batch.depth}),
                                      shape(::xla::S64, {rows}),    shape(::xla::F32, {rows})};
  const std::vector<XlaOp> operands = {products,          batch.features, batch.weights, context->Input("labels"),
                                       layer.bias.values, layer.lambda};
  const XlaOp results = call("lsoftmax_loss", operands, outputs, 1, absl::StrCat("{margin = ", margin, " : i64}"));
  for (size_t i = 0; i < outputs.size(); ++i) context->SetOutput(i, ::xla::GetTupleElement(results, i));
  return absl::Status();
}

absl::Status call_features_grad(XlaOpKernelContext* context, int) {
  return call_grad(context, "lsoftmax_features_grad", "products_features_grad", true);
}

absl::Status call_weights_grad(XlaOpKernelContext* context, int) {
  return call_grad(context, "lsoftmax_weights_grad", "products_weights_grad", false);
}

// XLA's own update in place, at a column that a call has checked.
absl::Status call_set_columns(XlaOpKernelContext* context, int) {
  Columns columns;
  TF_RETURN_IF_ERROR(read_columns(context, &columns));
  const Shape scalar = ShapeUtil::MakeShape(::xla::S64, {});
  const XlaOp first = ::xla::CustomCallWithLayout(
      columns.first.builder(), "lsoftmax_first_column", {columns.first}, scalar, {scalar},
      absl::StrCat("{count = ", columns.count, " : i64, width = ", columns.width, " : i64}"),
      /*has_side_effect=*/false, {}, /*literal=*/nullptr, ::xla::CustomCallSchedule::SCHEDULE_NONE,
      ::xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
  context->SetOutput(0, ::xla::DynamicUpdateSlice(columns.matrix, columns.block, {number(first, 0), first}));
  return absl::Status();
}

}  // namespace lsoftmax

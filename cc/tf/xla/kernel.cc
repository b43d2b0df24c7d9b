#include "tf/xla/kernel.h"

#include <limits>

namespace lsoftmax {

namespace {

int64_t size_of(XlaOpKernelContext* context, const char* argument, int dim) {
  return context->InputShape(argument).dim_size(dim);
}

}  // namespace

absl::Status read(XlaOpKernelContext* context, const char* argument, std::initializer_list<int64_t> expected,
                  XlaOp* input) {
  TF_RETURN_IF_ERROR(check_shape(argument, context->InputShape(argument), expected));
  *input = context->Input(argument);
  return absl::Status();
}

absl::Status read_batch(XlaOpKernelContext* context, Batch* batch) {
  XlaOp labels;
  TF_RETURN_IF_ERROR(read(context, "features", {-1, -1}, &batch->features));
  const int64_t rows = size_of(context, "features", 0);
  batch->depth = size_of(context, "features", 1);
  TF_RETURN_IF_ERROR(read(context, "weights", {batch->depth, -1}, &batch->weights));
  TF_RETURN_IF_ERROR(check_classes(context->InputShape("weights")));
  TF_RETURN_IF_ERROR(read(context, "labels", {rows}, &labels));
  batch->targets = targets_of(labels, rows, size_of(context, "weights", 1));
  return absl::Status();
}

absl::Status read_rows(XlaOpKernelContext* context, const char* argument, Rows* rows) {
  XlaOp labels;
  TF_RETURN_IF_ERROR(read(context, argument, {-1, -1}, &rows->matrix));
  const int64_t size = size_of(context, argument, 0);
  TF_RETURN_IF_ERROR(read(context, "labels", {size}, &labels));
  rows->targets = targets_of(labels, size, size_of(context, argument, 1));
  return absl::Status();
}

absl::Status read_block(XlaOpKernelContext* context, const char* argument, Rows* rows) {
  XlaOp first_class;
  TF_RETURN_IF_ERROR(read_rows(context, argument, rows));
  TF_RETURN_IF_ERROR(read(context, "first_class", {}, &first_class));
  const int64_t classes = rows->targets.classes;
  rows->targets = targets_of(context->Input("labels"), rows->targets.rows, classes, first_class);
  rows->matrix = where(is_first(first_class, classes, std::numeric_limits<int64_t>::max()), rows->matrix,
                       std::numeric_limits<double>::quiet_NaN());
  return absl::Status();
}

absl::Status read_bias(XlaOpKernelContext* context, int64_t classes, Bias* bias) {
  const tensorflow::TensorShape shape = context->InputShape("bias");
  TF_RETURN_IF_ERROR(check_bias(shape, classes));
  bias->is_there = shape.num_elements() > 0;
  bias->values = context->Input("bias");
  return absl::Status();
}

absl::Status read_layer(XlaOpKernelContext* context, Layer* layer) {
  TF_RETURN_IF_ERROR(read_batch(context, &layer->batch));
  TF_RETURN_IF_ERROR(read_bias(context, layer->batch.targets.classes, &layer->bias));
  return read(context, "lam", {}, &layer->lambda);
}

absl::Status read_loss_grad(XlaOpKernelContext* context, int64_t rows, XlaOp* loss_grad) {
  TF_RETURN_IF_ERROR(read(context, "loss_grad", {rows}, loss_grad));
  *loss_grad = widen(*loss_grad);
  XlaOp grad_unit;
  TF_RETURN_IF_ERROR(read(context, "grad_unit", {rows}, &grad_unit));
  if (context->input_type(0) == tensorflow::DT_HALF) *loss_grad = *loss_grad * grad_unit;
  return absl::Status();
}

absl::Status read_columns(XlaOpKernelContext* context, Columns* columns) {
  TF_RETURN_IF_ERROR(read(context, "matrix", {-1, -1}, &columns->matrix));
  TF_RETURN_IF_ERROR(read(context, "block", {size_of(context, "matrix", 0), -1}, &columns->block));
  TF_RETURN_IF_ERROR(read(context, "first_column", {}, &columns->first));
  columns->count = size_of(context, "block", 1);
  columns->width = size_of(context, "matrix", 1);
  // A block that is too wide fits nowhere.
  return columns->count <= columns->width ? absl::Status()
                                          : check_first("first_column", 0, columns->count, columns->width);
}

XlaOp Bias::added_to(XlaOp products) const {
  return is_there ? ::xla::Add(widen(products), widen(values), {1}) : widen(products);
}

XlaOp Bias::of_target(const Targets& targets) const {
  return is_there ? to_double(element_at(targets, values)) : ::xla::ConstantR0<double>(targets.column.builder(), 0);
}

}  // namespace lsoftmax

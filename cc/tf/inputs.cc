#include "tf/inputs.h"

#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/margin.h"
#include "core/validate.h"

namespace lsoftmax {

using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::DimensionOrConstant;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

absl::Status check_shape(const char* argument, const TensorShape& shape, std::initializer_list<int64_t> expected) {
  bool good = shape.dims() == static_cast<int>(expected.size());
  std::vector<std::string> sizes;
  int d = 0;
  for (const int64_t size : expected) {
    good = good && (size < 0 || shape.dim_size(d) == size);
    sizes.push_back(size < 0 ? "?" : absl::StrCat(size));
    ++d;
  }
  if (good) return absl::Status();
  return absl::InvalidArgumentError(
      absl::StrCat(argument, ": expected shape [", absl::StrJoin(sizes, ","), "], got ", shape.DebugString()));
}

absl::Status check_classes(const TensorShape& weights) {
  if (weights.dim_size(1) > 0) return absl::Status();
  return absl::InvalidArgumentError(
      absl::StrCat("weights: expected at least one class, got shape ", weights.DebugString()));
}

absl::Status check_bias(const TensorShape& bias, int64_t classes) {
  return bias == TensorShape({0}) ? absl::Status() : check_shape("bias", bias, {classes});
}

absl::Status check_target_weights(const TensorShape& target_weights, int64_t rows, int64_t depth) {
  if (target_weights == TensorShape({0, 0})) return absl::Status();
  return check_shape("target_weights", target_weights, {rows, depth});
}

absl::Status check_layer(ShapeOf shape_of, int first) {
  const TensorShape features = shape_of(first), weights = shape_of(first + 1);
  TF_RETURN_IF_ERROR(check_shape("features", features, {-1, -1}));
  TF_RETURN_IF_ERROR(check_shape("weights", weights, {features.dim_size(1), -1}));
  TF_RETURN_IF_ERROR(check_classes(weights));
  TF_RETURN_IF_ERROR(check_shape("labels", shape_of(first + 2), {features.dim_size(0)}));
  TF_RETURN_IF_ERROR(check_bias(shape_of(first + 3), weights.dim_size(1)));
  return check_shape("lam", shape_of(first + 4), {});
}

absl::Status check_loss_with_gradient(ShapeOf shape_of, int64_t class_block_size) {
  TF_RETURN_IF_ERROR(check_layer(shape_of, 0));
  const int64_t rows = shape_of(0).dim_size(0), depth = shape_of(0).dim_size(1), classes = shape_of(1).dim_size(1);
  const bool in_blocks = class_block_size > 0;
  const auto unless_in_blocks = [in_blocks](int64_t size) { return in_blocks ? 0 : size; };
  TF_RETURN_IF_ERROR(check_shape("value", shape_of(5), {rows}));
  TF_RETURN_IF_ERROR(check_shape("products_grad", shape_of(6), {unless_in_blocks(rows), unless_in_blocks(classes)}));
  TF_RETURN_IF_ERROR(check_shape("geometry_grad", shape_of(7), {3, rows}));
  TF_RETURN_IF_ERROR(check_shape("target_grad", shape_of(8), {rows}));
  TF_RETURN_IF_ERROR(check_shape("target_weights", shape_of(9), {unless_in_blocks(rows), unless_in_blocks(depth)}));
  TF_RETURN_IF_ERROR(check_shape("normalizer", shape_of(10), {2, in_blocks ? rows : 0}));
  return check_shape("grad_unit", shape_of(11), {rows});
}

absl::Status check_loss_bias_grad(ShapeOf shape_of) {
  TF_RETURN_IF_ERROR(check_layer(shape_of, 1));
  TF_RETURN_IF_ERROR(check_shape("value", shape_of(0), {shape_of(4).dim_size(0)}));
  return check_shape("loss_grad", shape_of(6), {shape_of(1).dim_size(0)});
}

absl::Status check_labels(const Labels& labels, int64_t rows, int64_t classes) {
  const int64_t row = first_bad_label(labels, rows, classes);
  if (row < 0) return absl::Status();
  return absl::InvalidArgumentError(about_bad_label(labels, row, classes));
}

absl::Status check_lambda(double lambda) {
  if (is_good_lambda(lambda)) return absl::Status();
  return absl::InvalidArgumentError(about_bad_lambda(lambda));
}

absl::Status check_first(const char* argument, int64_t first, int64_t count, int64_t width) {
  if (is_good_first(first, count, width)) return absl::Status();
  return absl::InvalidArgumentError(about_bad_first(argument, first, count, width));
}

absl::Status read_first_class(const Tensor& first_class, int64_t count, int64_t* value) {
  TF_RETURN_IF_ERROR(check_shape("first_class", first_class, {}));
  *value = *data_of<int64_t>(first_class);
  return check_first("first_class", *value, count, std::numeric_limits<int64_t>::max());
}

absl::Status read_margin(tensorflow::OpKernelConstruction* construction, int* margin) {
  TF_RETURN_IF_ERROR(construction->GetAttr("margin", margin));
  if (1 <= *margin && *margin <= kMaxMargin) return absl::Status();
  return absl::InvalidArgumentError(
      absl::StrCat("margin: expected an integer from 1 to ", kMaxMargin, ", got ", *margin));
}

Labels labels_of(const Tensor& labels) { return {labels.data(), labels.dtype() == tensorflow::DT_INT64}; }

absl::Status merge_input(InferenceContext* context, int index, const char* argument,
                         std::initializer_list<DimensionOrConstant> expected, ShapeHandle* merged) {
  std::vector<DimensionHandle> dims;
  for (const DimensionOrConstant& dim : expected) dims.push_back(context->MakeDim(dim));
  const ShapeHandle shape = context->MakeShape(dims);
  if (context->Merge(context->input(index), shape, merged).ok()) return absl::Status();
  return absl::InvalidArgumentError(absl::StrCat(argument, ": expected shape ", context->DebugString(shape), ", got ",
                                                 context->DebugString(context->input(index))));
}

absl::Status merge_input_or_none(InferenceContext* context, int index, const char* argument,
                                 std::initializer_list<DimensionOrConstant> expected) {
  const ShapeHandle shape = context->input(index);
  bool may_be_none = context->RankKnown(shape) && context->Rank(shape) == static_cast<int>(expected.size());
  for (size_t d = 0; may_be_none && d < expected.size(); ++d) {
    may_be_none = !context->ValueKnown(context->Dim(shape, d)) || context->Value(context->Dim(shape, d)) == 0;
  }
  ShapeHandle ignored;
  return may_be_none ? absl::Status() : merge_input(context, index, argument, expected, &ignored);
}

absl::Status merge_batch(InferenceContext* context, int first, ShapeHandle* features, ShapeHandle* weights,
                         ShapeHandle* labels) {
  TF_RETURN_IF_ERROR(merge_input(context, first, "features", {context->UnknownDim(), context->UnknownDim()}, features));
  TF_RETURN_IF_ERROR(
      merge_input(context, first + 1, "weights", {context->Dim(*features, 1), context->UnknownDim()}, weights));
  TF_RETURN_IF_ERROR(merge_input(context, first + 2, "labels", {context->Dim(*features, 0)}, labels));
  *features = context->Matrix(context->Dim(*labels, 0), context->Dim(*weights, 0));
  if (context->Value(context->Dim(*weights, 1)) != 0) return absl::Status();
  return absl::InvalidArgumentError(
      absl::StrCat("weights: expected at least one class, got shape ", context->DebugString(*weights)));
}

absl::Status merge_layer(InferenceContext* context, int first, ShapeHandle* features, ShapeHandle* weights,
                         ShapeHandle* labels) {
  ShapeHandle ignored;
  TF_RETURN_IF_ERROR(merge_batch(context, first, features, weights, labels));
  TF_RETURN_IF_ERROR(merge_input_or_none(context, first + 3, "bias", {context->Dim(*weights, 1)}));
  return merge_input(context, first + 4, "lam", {}, &ignored);
}

}  // namespace lsoftmax

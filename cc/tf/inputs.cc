#include "tf/inputs.h"

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

absl::Status check_labels(const Tensor& labels, int64_t classes) {
  const Labels view = labels_of(labels);
  const int64_t row = first_bad_label(view, labels.NumElements(), classes);
  if (row < 0) return absl::Status();
  return absl::InvalidArgumentError(about_bad_label(view, row, classes));
}

absl::Status check_lambda(const Tensor& lambda) {
  const double value = lambda.scalar<double>()();
  if (is_good_lambda(value)) return absl::Status();
  return absl::InvalidArgumentError(about_bad_lambda(value));
}

absl::Status check_columns(int64_t first, int64_t count, int64_t width) {
  if (0 <= first && first <= width - count) return absl::Status();
  return absl::InvalidArgumentError(absl::StrCat("first_column: expected a column from 0 to ", width - count,
                                                 " for a block of ", count, ", got ", first));
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

absl::Status merge_bias(InferenceContext* context, int index, DimensionHandle classes) {
  const ShapeHandle bias = context->input(index);
  if (context->RankKnown(bias) && context->Rank(bias) == 1 && context->Value(context->Dim(bias, 0)) == 0) {
    return absl::Status();
  }
  ShapeHandle ignored;
  if (!context->RankKnown(bias) || !context->ValueKnown(context->Dim(bias, 0))) {
    return merge_input(context, index, "bias", {context->UnknownDim()}, &ignored);
  }
  return merge_input(context, index, "bias", {classes}, &ignored);
}

}  // namespace lsoftmax

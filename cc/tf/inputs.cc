#include "tf/inputs.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace lsoftmax {

using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

namespace {

// What an op calls an array where it has several of a kind, and its scalars. In the order in which shapes are checked:
// who comes first is believed.
constexpr Array kBefore[] = {{"logits_grad", "[N, C]", Element::kReal}};
constexpr Array kAfter[] = {
    {"first_class", "[]", Element::kInt64},
    {"depth", "[]", Element::kInt64},
    {"sums_before", "[5, N]", Element::kDouble},
    {"same_loss", "[N]", Element::kReal},
    {"whole_products_grad", "[N, C] or none", Element::kReal},
    {"normalizer_of_blocks", "[3, N] or none", Element::kDouble},
    {"products_features_grad", "[N, D]", Element::kReal},
    {"products_weights_grad", "[D, C]", Element::kReal},
    {"same_features", "[N, D]", Element::kReal},
    {"same_weights", "[D, C]", Element::kReal},
    {"matrix", "[D, C]", Element::kReal},
    {"new_matrix", "[D, C]", Element::kReal},
    {"block", "[D, B]", Element::kReal},
    {"first_column", "[]", Element::kInt64},
};

// Of LsoftmaxLossGradient: the gradient has the shape of what it is `of`.
template <typename Context>
std::vector<Array> own_arrays(Context* context) {
  std::string of;
  if (!context->GetAttr("of", &of).ok()) return {};
  const char* const shape = kArrays[number_of(of + "_grad")].shape;
  return {{"gradient", shape, Element::kReal}, {"same_gradient", shape, Element::kReal}};
}

template <typename Context>
bool is_class_major(Context* context) {
  bool class_major = false;
  return context->GetAttr("class_major", &class_major).ok() && class_major;
}

// visit(array) for each that the op may have, in the layout of its weights.
template <typename Context, typename Visit>
void for_each_array(Context* context, const Visit& visit) {
  const bool class_major = is_class_major(context);
  const auto visit_all = [&](const auto& arrays) {
    for (const Array& array : arrays) visit(array.in_layout(class_major));
  };
  visit_all(kBefore);
  visit_all(kArrays);
  visit_all(kAfter);
  visit_all(own_arrays(context));
}

using Dimensions = std::array<DimensionHandle, kLetters.size()>;  // what the letters of the shapes stand for

ShapeHandle shape_of(const Array& array, InferenceContext* context, const Dimensions& known) {
  std::vector<DimensionHandle> sizes;
  for (int d = 0; d < array.rank; ++d) {
    const int size = array.sizes[d];
    sizes.push_back(size < 0 ? known[-1 - size] : context->MakeDim(size));
  }
  return context->MakeShape(sizes);
}

// An attribute, where the op has it.
template <typename Value>
absl::Status read_if_any(tensorflow::OpKernelConstruction* construction, const char* name, Value* value) {
  return construction->HasAttr(name) ? construction->GetAttr(name, value) : absl::Status();
}

bool may_be_none(const Array& array, InferenceContext* context, ShapeHandle shape) {
  if (!array.may_be_none || !context->RankKnown(shape) || context->Rank(shape) != 1) return false;
  const DimensionHandle size = context->Dim(shape, 0);
  return !context->ValueKnown(size) || context->Value(size) == 0;
}

}  // namespace

Signature::Signature(const tensorflow::OpKernel& kernel, tensorflow::OpKernelConstruction* construction)
    : class_major_(is_class_major(construction)) {
  for_each_array(construction, [&](const Array& array) {
    int begin = 0, end = 0;
    const int number = number_of(array.name);
    if (kernel.InputRange(array.name, &begin, &end).ok()) inputs_.push_back({array, number, begin, -1});
    if (kernel.OutputRange(array.name, &begin, &end).ok()) outputs_.push_back({array, number, begin, -1});
  });
  for (Place& place : outputs_) {
    absl::string_view name = place.array.name;
    if (absl::ConsumePrefix(&name, "same_")) place.same = input(name.data());
  }
}

int Signature::find(const std::vector<Place>& places, const char* name) {
  for (const Place& place : places) {
    if (strcmp(place.array.name, name) == 0) return place.index;
  }
  return -1;
}

TensorShape shape_in(const Array& array, const Sizes& sizes) {
  TensorShape shape;
  for (int d = 0; d < array.rank; ++d) shape.AddDim(sizes[array.sizes[d]]);
  return shape;
}

absl::Status infer_shapes(InferenceContext* context) {
  Dimensions known;
  for (DimensionHandle& size : known) size = context->UnknownDim();
  absl::Status status;
  for_each_array(context, [&](const Array& array) {
    std::vector<ShapeHandle> inputs;
    if (!status.ok() || !context->input(array.name, &inputs).ok() || may_be_none(array, context, inputs[0])) return;
    const ShapeHandle expected = shape_of(array, context, known);
    ShapeHandle merged;
    if (!context->Merge(inputs[0], expected, &merged).ok()) {
      status = absl::InvalidArgumentError(absl::StrCat(array.name, ": expected shape ", context->DebugString(expected),
                                                       ", got ", context->DebugString(inputs[0])));
      return;
    }
    for (int d = 0; d < array.rank; ++d) {
      if (array.sizes[d] < 0) known[-1 - array.sizes[d]] = context->Dim(merged, d);
    }
    if (!array.may_be_empty && context->Value(context->Dim(merged, array.class_dimension())) == 0) {
      status = absl::InvalidArgumentError(
          absl::StrCat(array.name, ": expected at least one class, got shape ", context->DebugString(merged)));
    }
  });
  TF_RETURN_IF_ERROR(status);
  for_each_array(context, [&](const Array& array) {
    context->set_output(array.name, {shape_of(array, context, known)})
        .IgnoreError();  // that there is none of this name
  });
  return status;
}

absl::Status read_margin(tensorflow::OpKernelConstruction* construction, Margin* margin) {
  TF_RETURN_IF_ERROR(read_if_any(construction, "margin", &margin->m));
  TF_RETURN_IF_ERROR(read_if_any(construction, "normalize_features", &margin->normalize_features));
  TF_RETURN_IF_ERROR(read_if_any(construction, "normalize_weights", &margin->normalize_weights));
  TF_RETURN_IF_ERROR(read_if_any(construction, "linear_continuation", &margin->linear));
  return status_of(judge(*margin));
}

absl::Status read_range(tensorflow::OpKernelConstruction* construction, ClassRange* range) {
  TF_RETURN_IF_ERROR(read_if_any(construction, "first_class", &range->first));
  return read_if_any(construction, "num_classes", &range->count);
}

absl::Status check_wide(tensorflow::OpKernelConstruction* construction) {
  if (!construction->HasAttr("Twide")) return absl::Status();
  tensorflow::DataType type, wide;
  TF_RETURN_IF_ERROR(construction->GetAttr("T", &type));
  TF_RETURN_IF_ERROR(construction->GetAttr("Twide", &wide));
  const tensorflow::DataType expected = type == tensorflow::DT_DOUBLE ? type : tensorflow::DT_FLOAT;
  if (wide == expected) return absl::Status();
  return absl::InvalidArgumentError(absl::StrCat("class_factors: expected ", tensorflow::DataTypeString(expected),
                                                 " with arguments of ", tensorflow::DataTypeString(type), ", got ",
                                                 tensorflow::DataTypeString(wide)));
}

}  // namespace lsoftmax

// What every op of this library checks of its inputs, and how a checked input becomes an argument of
// the core.
//
// Each check answers with an InvalidArgument status that names the argument, what came and what was expected.
// Static shapes meet the same rules in the shape functions, so that they fail when a graph is built.
#ifndef LSOFTMAX_TF_INPUTS_H_
#define LSOFTMAX_TF_INPUTS_H_

#include "core/arguments.h"
#include "core/half.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"

namespace lsoftmax {

// The core's name for a TensorFlow element type of the same layout.
template <typename T>
struct CoreType {
  using type = T;
};
template <>
struct CoreType<Eigen::half> {
  using type = float16;
};
template <>
struct CoreType<Eigen::bfloat16> {
  using type = bfloat16;
};
template <typename T>
using Core = typename CoreType<T>::type;

template <typename T>
const Core<T>* data_of(const tensorflow::Tensor& tensor) {
  return reinterpret_cast<const Core<T>*>(tensor.flat<T>().data());
}
template <typename T>
Core<T>* data_of(tensorflow::Tensor* tensor) {
  return reinterpret_cast<Core<T>*>(tensor->flat<T>().data());
}

// Run time: shapes. -1 in `expected` is any size.
absl::Status check_shape(const char* argument, const tensorflow::TensorShape& shape,
                         std::initializer_list<int64_t> expected);
inline absl::Status check_shape(const char* argument, const tensorflow::Tensor& tensor,
                                std::initializer_list<int64_t> expected) {
  return check_shape(argument, tensor.shape(), expected);
}

// Run time: a weight matrix [D, C] has at least one class.
absl::Status check_classes(const tensorflow::TensorShape& weights);

// Run time: values on the host.
absl::Status check_labels(const tensorflow::Tensor& labels, int64_t classes);
absl::Status check_lambda(const tensorflow::Tensor& lambda);

// Construction: the attribute "margin", in [1, kMaxMargin].
absl::Status read_margin(tensorflow::OpKernelConstruction* construction, int* margin);

// Precondition: int32 or int64.
Labels labels_of(const tensorflow::Tensor& labels);

// Graph building: the shape of input `index` merged with `expected` (an unknown dimension matches any). The message
// names the input.
absl::Status merge_input(tensorflow::shape_inference::InferenceContext* context, int index, const char* argument,
                         std::initializer_list<tensorflow::shape_inference::DimensionOrConstant> expected,
                         tensorflow::shape_inference::ShapeHandle* merged);

// Graph building: the inputs features [N, D], weights [D, C] and labels [N], in this order from input `first` on.
absl::Status merge_batch(tensorflow::shape_inference::InferenceContext* context, int first,
                         tensorflow::shape_inference::ShapeHandle* features,
                         tensorflow::shape_inference::ShapeHandle* weights,
                         tensorflow::shape_inference::ShapeHandle* labels);

// Run time: the same inputs, checked, and what they are to the core.
template <typename Backend, typename T>
absl::Status read_batch(tensorflow::OpKernelContext* context, int first, Arguments<Core<T>>* args) {
  const tensorflow::Tensor& features = context->input(first);
  const tensorflow::Tensor& weights = context->input(first + 1);
  const tensorflow::Tensor& labels = context->input(first + 2);
  TF_RETURN_IF_ERROR(check_shape("features", features, {-1, -1}));
  args->rows = features.dim_size(0);
  args->depth = features.dim_size(1);
  TF_RETURN_IF_ERROR(check_shape("weights", weights, {args->depth, -1}));
  args->classes = weights.dim_size(1);
  TF_RETURN_IF_ERROR(check_classes(weights.shape()));
  TF_RETURN_IF_ERROR(check_shape("labels", labels, {args->rows}));
  TF_RETURN_IF_ERROR(Backend::check_labels(labels, args->classes));
  args->features = data_of<T>(features);
  args->weights = data_of<T>(weights);
  args->labels = labels_of(labels);
  return absl::Status();
}

// Graph building: input `index` is a bias, [C] of `weights` [D, C] or, for none, [0].
absl::Status merge_bias(tensorflow::shape_inference::InferenceContext* context, int index,
                        tensorflow::shape_inference::DimensionHandle classes);

// Run time: the same, checked; null is none.
template <typename T>
absl::Status read_bias(const tensorflow::Tensor& bias, int64_t classes, const Core<T>** data) {
  if (bias.dims() == 1 && bias.dim_size(0) == 0) return absl::Status();
  *data = data_of<T>(bias);
  return check_shape("bias", bias, {classes});
}

// Run time: the four inputs products [N, B], labels [N], bias [B] or [0] and first_class [] of an op over a block of
// classes. That the labels are good has been seen by whoever made the block.
template <typename T>
absl::Status read_block(tensorflow::OpKernelContext* context, Arguments<Core<T>>* args) {
  const tensorflow::Tensor& products = context->input(0);
  const tensorflow::Tensor& labels = context->input(1);
  TF_RETURN_IF_ERROR(check_shape("products", products, {-1, -1}));
  args->rows = products.dim_size(0);
  args->classes = products.dim_size(1);
  TF_RETURN_IF_ERROR(check_shape("labels", labels, {args->rows}));
  TF_RETURN_IF_ERROR(read_bias<T>(context->input(2), args->classes, &args->bias));
  TF_RETURN_IF_ERROR(check_shape("first_class", context->input(3), {}));
  args->products = data_of<T>(products);
  args->labels = labels_of(labels);
  args->first_class = context->input(3).scalar<int64_t>()();
  return absl::Status();
}

// Run time: the columns [first, first + count) are among `width`.
absl::Status check_columns(int64_t first, int64_t count, int64_t width);

// Run time: the weights of each row's class [N, D]; [0, 0] is none.
template <typename T>
absl::Status read_target_weights(tensorflow::Tensor* target_weights, Arguments<Core<T>>* args) {
  if (target_weights->dims() == 2 && target_weights->NumElements() == 0) return absl::Status();
  args->target_weights = data_of<T>(target_weights);
  return check_shape("target_weights", *target_weights, {args->rows, args->depth});
}

// Run time: the four inputs matrix [N, C], labels [N], geometry [3, N] and lam [] of LsoftmaxLogits and its gradient.
// The matrix, named `argument`, is the caller's to take.
template <typename Backend, typename T>
absl::Status read_targets(tensorflow::OpKernelContext* context, const char* argument, Arguments<T>* args) {
  const tensorflow::Tensor& matrix = context->input(0);
  const tensorflow::Tensor& labels = context->input(1);
  tensorflow::Tensor geometry = context->input(2);
  const tensorflow::Tensor& lambda = context->input(3);
  TF_RETURN_IF_ERROR(check_shape(argument, matrix, {-1, -1}));
  args->rows = matrix.dim_size(0);
  args->classes = matrix.dim_size(1);
  TF_RETURN_IF_ERROR(check_shape("labels", labels, {args->rows}));
  TF_RETURN_IF_ERROR(check_shape("geometry", geometry, {3, args->rows}));
  TF_RETURN_IF_ERROR(check_shape("lam", lambda, {}));
  TF_RETURN_IF_ERROR(Backend::check_labels(labels, args->classes));
  TF_RETURN_IF_ERROR(Backend::check_lambda(lambda));
  args->labels = labels_of(labels);
  args->geometry = data_of<double>(&geometry);
  args->lambda = data_of<double>(lambda);
  return absl::Status();
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_INPUTS_H_

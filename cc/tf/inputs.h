// What every op of this library checks of its inputs, and how a checked input becomes an argument of
// the core.
//
// Each check answers with an InvalidArgument status that names the argument, what came and what was expected.
// Static shapes meet the same rules in the shape functions, so that they fail when a graph is built.
#ifndef LSOFTMAX_TF_INPUTS_H_
#define LSOFTMAX_TF_INPUTS_H_

#include <vector>

#include "absl/functional/function_ref.h"
#include "core/arguments.h"
#include "core/grad_unit.h"
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

// The elements of a tensor of T. (Tensor::flat would end the process where the memory, somebody else's, does not begin at a
// multiple of what Eigen's vectors want.)
template <typename T>
const Core<T>* data_of(const tensorflow::Tensor& tensor) {
  return static_cast<const Core<T>*>(tensor.data());
}
template <typename T>
Core<T>* data_of(tensorflow::Tensor* tensor) {
  return static_cast<Core<T>*>(tensor->data());
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

// Run time: a bias is [classes] (-1 is any number) or, for none, [0].
absl::Status check_bias(const tensorflow::TensorShape& bias, int64_t classes);

// Run time: the weights of each row's class are [rows, depth] or, for none, [0, 0].
absl::Status check_target_weights(const tensorflow::TensorShape& target_weights, int64_t rows, int64_t depth);

// Run time: the shape of an op's input, on whatever it runs.
using ShapeOf = absl::FunctionRef<tensorflow::TensorShape(int index)>;

// Run time: the shapes of the inputs features [N, D], weights [D, C], labels [N], bias [C] or [0] and lam [], in this order
// from input `first` on.
absl::Status check_layer(ShapeOf shape_of, int first);

// Run time: the shapes of all inputs of LsoftmaxLossWithGradient and LsoftmaxLossBiasGrad.
absl::Status check_loss_with_gradient(ShapeOf shape_of, int64_t class_block_size);
absl::Status check_loss_bias_grad(ShapeOf shape_of);

// Run time: values on the host.
absl::Status check_labels(const Labels& labels, int64_t rows, int64_t classes);
absl::Status check_lambda(double lambda);

// Run time: the columns [first, first + count) are among `width`. The place of the first is an argument.
absl::Status check_first(const char* argument, int64_t first, int64_t count, int64_t width);

// The core's arguments, and copies of the values that the host checks: an input may lie in a variable's buffer, which another
// thread writes to before they are used.
template <typename T>
struct Inputs : Arguments<T> {
  std::vector<int64_t> own_labels;
  double own_lambda = 0;
};

// Construction: the attribute "margin", in [1, kMaxMargin].
absl::Status read_margin(tensorflow::OpKernelConstruction* construction, int* margin);

// Precondition: int32 or int64.
Labels labels_of(const tensorflow::Tensor& labels);

// Graph building: the shape of input `index` merged with `expected` (an unknown dimension matches any). The message
// names the input.
absl::Status merge_input(tensorflow::shape_inference::InferenceContext* context, int index, const char* argument,
                         std::initializer_list<tensorflow::shape_inference::DimensionOrConstant> expected,
                         tensorflow::shape_inference::ShapeHandle* merged);

// Graph building: the same, or zero in every dimension, which is none.
absl::Status merge_input_or_none(tensorflow::shape_inference::InferenceContext* context, int index,
                                 const char* argument,
                                 std::initializer_list<tensorflow::shape_inference::DimensionOrConstant> expected);

// Graph building: the inputs features [N, D], weights [D, C] and labels [N], in this order from input `first` on.
absl::Status merge_batch(tensorflow::shape_inference::InferenceContext* context, int first,
                         tensorflow::shape_inference::ShapeHandle* features,
                         tensorflow::shape_inference::ShapeHandle* weights,
                         tensorflow::shape_inference::ShapeHandle* labels);

// Graph building: the same, and bias [C] or [0] and lam [] behind them.
absl::Status merge_layer(tensorflow::shape_inference::InferenceContext* context, int first,
                         tensorflow::shape_inference::ShapeHandle* features,
                         tensorflow::shape_inference::ShapeHandle* weights,
                         tensorflow::shape_inference::ShapeHandle* labels);

// Run time: the inputs features, weights and labels, checked, and what they are to the core.
template <typename Backend, typename T>
absl::Status read_batch(tensorflow::OpKernelContext* context, int first, Inputs<Core<T>>* args) {
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
  TF_RETURN_IF_ERROR(Backend::read_labels(labels, args));
  args->features = data_of<T>(features);
  args->weights = data_of<T>(weights);
  return absl::Status();
}

// Run time: a bias, checked; null is none.
template <typename T>
absl::Status read_bias(const tensorflow::Tensor& bias, int64_t classes, const Core<T>** data) {
  TF_RETURN_IF_ERROR(check_bias(bias.shape(), classes));
  if (bias.NumElements() > 0) *data = data_of<T>(bias);
  return absl::Status();
}

// Run time: the inputs of a layer, checked.
template <typename Backend, typename T>
absl::Status read_layer(tensorflow::OpKernelContext* context, int first, Inputs<Core<T>>* args) {
  TF_RETURN_IF_ERROR((read_batch<Backend, T>(context, first, args)));
  TF_RETURN_IF_ERROR(read_bias<T>(context->input(first + 3), args->classes, &args->bias));
  TF_RETURN_IF_ERROR(check_shape("lam", context->input(first + 4), {}));
  return Backend::read_lambda(context->input(first + 4), args);
}

// Run time: the scalar input "first_class" of an op over a block of `count` classes, read once and checked.
absl::Status read_first_class(const tensorflow::Tensor& first_class, int64_t count, int64_t* value);

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
  args->products = data_of<T>(products);
  args->labels = labels_of(labels);
  return read_first_class(context->input(3), args->classes, &args->first_class);
}

// Run time: the weights of each row's class, checked; null is none.
template <typename T>
absl::Status read_target_weights(tensorflow::Tensor* target_weights, Arguments<Core<T>>* args) {
  TF_RETURN_IF_ERROR(check_target_weights(target_weights->shape(), args->rows, args->depth));
  if (target_weights->NumElements() > 0) args->target_weights = data_of<T>(target_weights);
  return absl::Status();
}

// Run time: the unit of each row's gradients, checked; of a type that has none it is 1 and not read.
template <typename T>
absl::Status read_grad_unit(tensorflow::Tensor* grad_unit, Arguments<Core<T>>* args) {
  TF_RETURN_IF_ERROR(check_shape("grad_unit", *grad_unit, {args->rows}));
  if (kHasGradUnit<Core<T>>) args->grad_unit = data_of<float>(grad_unit);
  return absl::Status();
}

// Run time: the four inputs matrix [N, C], labels [N], geometry [3, N] and lam [] of LsoftmaxLogits and its gradient.
// The matrix, named `argument`, is the caller's to take.
template <typename Backend, typename T>
absl::Status read_targets(tensorflow::OpKernelContext* context, const char* argument, Inputs<T>* args) {
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
  TF_RETURN_IF_ERROR(Backend::read_labels(labels, args));
  TF_RETURN_IF_ERROR(Backend::read_lambda(lambda, args));
  args->geometry = data_of<double>(&geometry);
  return absl::Status();
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_INPUTS_H_

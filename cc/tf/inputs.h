// What every op of this library checks of its inputs, and how a checked input becomes an argument of the
// core.
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
absl::Status check_shape(const char* argument, const tensorflow::Tensor& tensor,
                         std::initializer_list<int64_t> expected);

// Run time: values on the host.
absl::Status check_labels(const tensorflow::Tensor& labels, int64_t classes);
absl::Status check_lambda(const tensorflow::Tensor& lambda);

// Construction: the attribute "margin", in [1, kMaxMargin].
absl::Status read_margin(tensorflow::OpKernelConstruction* construction, int* margin);

// Precondition: int32 or int64.
Labels labels_of(const tensorflow::Tensor& labels);

// Graph building: the shape of input `index` merged with `expected` (an unknown dimension matches any). The
// message names the input.
absl::Status merge_input(tensorflow::shape_inference::InferenceContext* context, int index, const char* argument,
                         std::initializer_list<tensorflow::shape_inference::DimensionOrConstant> expected,
                         tensorflow::shape_inference::ShapeHandle* merged);

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_INPUTS_H_

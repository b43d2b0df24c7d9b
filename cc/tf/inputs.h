// How the tensors of an op become the arrays of core/arguments.h: by their names, whose shapes core/arrays.h knows.
//
// Each check answers with an InvalidArgument status that names the argument, what came and what was expected. The shape
// functions follow the same rules, so that static shapes fail when a graph is built.
#ifndef LSOFTMAX_TF_INPUTS_H_
#define LSOFTMAX_TF_INPUTS_H_

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/arrays.h"
#include "core/half.h"
#include "core/validate.h"
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

// The elements of a tensor. (Tensor::flat would end the process where the memory, somebody else's, does not begin at a
// multiple of what Eigen's vectors want.)
template <typename T>
const T* data_of(const tensorflow::Tensor& tensor) {
  return static_cast<const T*>(tensor.data());
}

// The inputs and outputs of an op that are arrays, and where they are among all of them.
class Signature {
 public:
  struct Place {
    Array array;
    int number;  // in kArrays; -1: an array of ops alone
    int index;   // among the op's inputs or outputs
    int same;    // of output "same_NAME": input NAME; else -1
  };

  Signature(const tensorflow::OpKernel& kernel, tensorflow::OpKernelConstruction* construction);

  // The input or output of that name, or -1.
  int input(const char* name) const { return find(inputs_, name); }
  int output(const char* name) const { return find(outputs_, name); }

  // The attribute "class_major", where the op has it: its weights are [C, D].
  bool class_major() const { return class_major_; }

  const std::vector<Place>& inputs() const { return inputs_; }
  const std::vector<Place>& outputs() const { return outputs_; }

  // Whether the inputs have the shapes that they are to have, and the sizes that these tell.
  template <typename ShapeOf>
  absl::Status check(const ShapeOf& shape_of, Sizes* sizes) const {
    for (const Place& place : inputs_) {
      const tensorflow::TensorShape& shape = shape_of(place.index);
      const auto dimension = [&shape](int d) { return shape.dim_size(d); };
      if (fits(place.array, shape.dims(), dimension, sizes)) continue;
      return absl::InvalidArgumentError(about_misfit(place.array, shape.dims(), dimension, *sizes));
    }
    return absl::Status();
  }
  absl::Status check(tensorflow::OpKernelContext* context, Sizes* sizes) const {
    return check([context](int i) -> const tensorflow::TensorShape& { return context->input(i).shape(); }, sizes);
  }

 private:
  static int find(const std::vector<Place>& places, const char* name);

  std::vector<Place> inputs_, outputs_;
  bool class_major_;
};

// The shape that an array has in a batch of these sizes.
tensorflow::TensorShape shape_in(const Array& array, const Sizes& sizes);

// The shape function of every op whose inputs and outputs are arrays.
absl::Status infer_shapes(tensorflow::shape_inference::InferenceContext* context);

inline absl::Status status_of(const std::string& wrong) {
  return wrong.empty() ? absl::Status() : absl::InvalidArgumentError(wrong);
}

// The columns [first, first + count) are among `width`.
inline absl::Status check_first(const char* argument, int64_t first, int64_t count, int64_t width) {
  return status_of(is_good_first(first, count, width) ? "" : about_bad_first(argument, first, count, width));
}

// Construction: those of the attributes "margin", in [1, kMaxMargin], "normalize_features", "normalize_weights" and
// "linear_continuation" that the op has.
absl::Status read_margin(tensorflow::OpKernelConstruction* construction, Margin* margin);

// Construction: the attributes "first_class" and "num_classes", where the op has them.
absl::Status read_range(tensorflow::OpKernelConstruction* construction, ClassRange* range);

// Construction: the attribute "Twide", where the op has it, is what its T is computed in.
absl::Status check_wide(tensorflow::OpKernelConstruction* construction);

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_INPUTS_H_

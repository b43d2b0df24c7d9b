// The CPU backend of the op kernels: those of core/batch.h on TensorFlow's own thread pool.
#ifndef LSOFTMAX_TF_CPU_H_
#define LSOFTMAX_TF_CPU_H_

#include <algorithm>

#include "core/batch.h"
#include "core/validate.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tf/inputs.h"

namespace lsoftmax {

struct Cpu {
  // Values that only the host can judge before the kernel runs: checked as they are copied.
  template <typename T>
  static absl::Status read_labels(const tensorflow::Tensor& labels, Inputs<T>* args) {
    args->own_labels = copy_of(labels_of(labels), args->rows);
    args->labels = {args->own_labels.data(), true};
    return check_labels(args->labels, args->rows, args->classes);
  }
  template <typename T>
  static absl::Status read_lambda(const tensorflow::Tensor& lambda, Inputs<T>* args) {
    args->own_lambda = *data_of<double>(lambda);
    args->lambda = &args->own_lambda;
    return check_lambda(args->own_lambda);
  }

  // Output 0 as a copy of input `index`: the very buffer where nobody else needs it any more.
  template <typename T>
  static absl::Status take_or_copy(tensorflow::OpKernelContext* context, int index, tensorflow::Tensor** output) {
    const tensorflow::TensorShape shape = context->input(index).shape();
    int taken = -1;
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({index}, 0, shape, output, &taken));
    if (taken < 0) {
      const auto* const from = data_of<T>(context->input(index));
      auto* const to = data_of<T>(*output);
      over(context, shape.num_elements(), 1,
           [&](int64_t begin, int64_t end) { std::copy(from + begin, from + end, to + begin); });
    }
    return absl::Status();
  }

#define LSOFTMAX_RUN(KERNEL)                                                           \
  template <typename T>                                                                \
  static void KERNEL(tensorflow::OpKernelContext* context, const Arguments<T>& args) { \
    KERNEL##_of_batch(args, threads_of(context));                                      \
  }
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_RUN)
  LSOFTMAX_RUN(geometry_and_loss)
#undef LSOFTMAX_RUN

  // A dense block [height, count] into columns of a matrix [height, width].
  template <typename T>
  static void copy_columns(tensorflow::OpKernelContext* context, const T* block, int64_t count, T* columns,
                           int64_t width, int64_t height) {
    over(context, height, count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(block + i * count, count, columns + i * width);
    });
  }

 private:
  template <typename Work>
  static void over(tensorflow::OpKernelContext* context, int64_t total, int64_t cost, const Work& work) {
    if (total * cost < kThreadCost) return work(0, total);
      // Deprecated in TensorFlow 2.21, but what replaces it is not in 2.18.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    context->device()->tensorflow_cpu_worker_threads()->workers->ParallelFor(total, cost, work);
#pragma GCC diagnostic pop
  }

  static auto threads_of(tensorflow::OpKernelContext* context) {
    return [context](int64_t total, int64_t cost, const auto& work) { over(context, total, cost, work); };
  }
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_CPU_H_

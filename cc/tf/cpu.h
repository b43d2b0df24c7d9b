// The CPU backend of the op kernels: runs the row kernels of the core on TensorFlow's own thread pool.
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

  template <typename T>
  static void geometry(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, row_kernels<T>().geometry, kColumnCost * args.depth);
  }

  template <typename T>
  static void logits(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, row_kernels<T>().logits, kTargetCost);
  }

  template <typename T>
  static void logits_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, row_kernels<T>().logits_grad, kTargetCost);
  }

  static void angles(tensorflow::OpKernelContext* context, const Arguments<double>& args) {
    over_rows(context, args, row_kernels<double>().angles, kTargetCost);
  }

  template <typename T>
  static void features_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    features_grad_of_batch(args, threads_of(context));
  }

  template <typename T>
  static void weights_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    weights_grad_of_batch(args, threads_of(context));
  }

  template <typename T>
  static void loss(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    loss_of_batch(args, threads_of(context));
  }

  template <typename T>
  static void sums(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, loss_kernels<T>().sums, kLogitCost * args.classes);
  }

  template <typename T>
  static void finish(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, loss_kernels<T>().finish, kTargetCost);
  }

  template <typename T>
  static void products_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over_rows(context, args, loss_kernels<T>().products_grad, kLogitCost * args.classes);
  }

  template <typename T>
  static void bias_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    over(context, args.classes, args.rows,
         [&](int64_t begin, int64_t end) { loss_kernels<T>().bias_grad(args, begin, end); });
  }

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

  template <typename T>
  static void over_rows(tensorflow::OpKernelContext* context, const Arguments<T>& args,
                        void (*kernel)(const Arguments<T>&, int64_t, int64_t), int64_t cost) {
    over(context, args.rows, cost, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_CPU_H_

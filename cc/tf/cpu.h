// The CPU backend of the op kernels: those of core/batch.h on TensorFlow's own thread pool.
#ifndef LSOFTMAX_TF_CPU_H_
#define LSOFTMAX_TF_CPU_H_

#include <algorithm>

#include "core/ranges.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tf/inputs.h"

namespace lsoftmax {

struct Cpu {
  // `over` of core/batch.h on TensorFlow's threads.
  static auto over(tensorflow::OpKernelContext* context) {
    auto* const pool = context->device()->tensorflow_cpu_worker_threads()->workers;
    return lsoftmax::over(pool, pool->NumThreads());
  }

  // Checks the values that only the host can judge before a kernel runs. Labels are judged where the classes are known.
  template <typename T>
  static absl::Status judge(bool knows_classes, JudgedArguments<T>* args) {
    return status_of(knows_classes ? args->judge() : args->lam != nullptr ? args->judge_lam() : "");
  }

  template <Kernel kernel, typename T>
  static absl::Status run(tensorflow::OpKernelContext* context, Arguments<T>* args) {
    run_on_batch<kernel>(*args, over(context));
    return absl::Status();
  }

  // An output in the buffer of an input, where nobody else needs that any more, or else in one of its own: a copy, if
  // `copied`.
  static absl::Status take(tensorflow::OpKernelContext* context, int input, int output, bool copied,
                           tensorflow::Tensor** tensor) {
    const tensorflow::TensorShape shape = context->input(input).shape();
    int taken = -1;
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({input}, output, shape, tensor, &taken));
    if (taken >= 0 || !copied || shape.num_elements() == 0) return absl::Status();
    const auto* const from = static_cast<const char*>(context->input(input).data());
    auto* const to = static_cast<char*>((*tensor)->data());
    const int64_t size = (*tensor)->TotalBytes() / shape.num_elements();
    over(context)(shape.num_elements(), 1, [&](int64_t begin, int64_t end) {
      std::copy(from + begin * size, from + end * size, to + begin * size);
    });
    return absl::Status();
  }

  // A dense block of `height` rows of `width` bytes into rows that begin `pitch` bytes apart.
  static absl::Status copy_rows(tensorflow::OpKernelContext* context, const void* block, int64_t width, void* rows,
                                int64_t pitch, int64_t height) {
    const auto* const from = static_cast<const char*>(block);
    auto* const to = static_cast<char*>(rows);
    over(context)(height, width / 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) std::copy_n(from + i * width, width, to + i * pitch);
    });
    return absl::Status();
  }
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_CPU_H_

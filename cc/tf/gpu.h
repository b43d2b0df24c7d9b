// The GPU backend of the op kernels: launches the CUDA kernels on TensorFlow's own stream.
//
// Labels, lambda and everything else stay in device memory, so no value is judged here: a bad one makes NaN rows
// (cuda/kernels.h). No CUDA header is needed.
#ifndef LSOFTMAX_TF_GPU_H_
#define LSOFTMAX_TF_GPU_H_

#include "cuda/kernels.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tf/inputs.h"

namespace lsoftmax {

struct Gpu {
  template <typename T>
  static absl::Status judge(bool, JudgedArguments<T>*) {
    return absl::Status();
  }

  template <Kernel kernel, typename T>
  static absl::Status run(tensorflow::OpKernelContext* context, Arguments<T>* args) {
    tensorflow::Tensor workspace;
    if (const int64_t bytes = cuda::workspace_of(kernel, args->rows, args->depth, args->classes); bytes > 0) {
      TF_RETURN_IF_ERROR(context->allocate_temp(tensorflow::DT_INT8, {bytes}, &workspace));
      args->workspace = workspace.data();
    }
    return status_of(cuda::run<kernel>(*args, stream_of(context)));
  }

  // As those of Cpu.
  static absl::Status take(tensorflow::OpKernelContext* context, int input, int output, bool copied,
                           tensorflow::Tensor** tensor) {
    const tensorflow::Tensor& from = context->input(input);
    int taken = -1;
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({input}, output, from.shape(), tensor, &taken));
    if (taken >= 0 || !copied) return absl::Status();
    return status_of(cuda::copy(from.data(), (*tensor)->data(), from.TotalBytes(), stream_of(context)));
  }
  static absl::Status copy_rows(tensorflow::OpKernelContext* context, const void* block, int64_t width, void* rows,
                                int64_t pitch, int64_t height) {
    return status_of(cuda::copy_rows(block, width, rows, pitch, width, height, stream_of(context)));
  }

 private:
  static cuda::Stream stream_of(tensorflow::OpKernelContext* context);  // gpu.cc
  static absl::Status status_of(cuda::Status status);
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_GPU_H_

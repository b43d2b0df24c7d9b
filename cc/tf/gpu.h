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
  static absl::Status read_labels(const tensorflow::Tensor& labels, Inputs<T>* args) {
    args->labels = labels_of(labels);
    return absl::Status();
  }
  template <typename T>
  static absl::Status read_lambda(const tensorflow::Tensor& lambda, Inputs<T>* args) {
    args->lambda = data_of<double>(lambda);
    return absl::Status();
  }

  // Output 0 as a copy of input `index`: the very buffer where nobody else needs it any more.
  template <typename T>
  static absl::Status take_or_copy(tensorflow::OpKernelContext* context, int index, tensorflow::Tensor** output) {
    const tensorflow::TensorShape shape = context->input(index).shape();
    int taken = -1;
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({index}, 0, shape, output, &taken));
    if (taken >= 0) return absl::Status();
    const tensorflow::Tensor& input = context->input(index);
    return status_of(cuda::copy(input.data(), (*output)->data(), input.TotalBytes(), stream_of(context)));
  }

  template <typename T>
  static void geometry(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::geometry(args, stream_of(context))));
  }

  template <typename T>
  static void logits(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::logits(args, stream_of(context))));
  }

  template <typename T>
  static void logits_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::logits_grad(args, stream_of(context))));
  }

  static void angles(tensorflow::OpKernelContext* context, const Arguments<double>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::angles(args, stream_of(context))));
  }

  template <typename T>
  static void features_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::features_grad(args, stream_of(context))));
  }

  template <typename T>
  static void weights_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT8,
                                                   {cuda::weights_grad_workspace(args.rows, args.depth)}, &workspace));
    OP_REQUIRES_OK(context, status_of(cuda::weights_grad(args, workspace.data(), stream_of(context))));
  }

  template <typename T>
  static void geometry_and_loss(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT8, {cuda::loss_workspace(args.rows, args.classes)},
                                                   &workspace));
    OP_REQUIRES_OK(context, status_of(cuda::geometry(args, stream_of(context))));
    OP_REQUIRES_OK(context, status_of(cuda::loss(args, workspace.data(), stream_of(context))));
  }

  template <typename T>
  static void sums(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    tensorflow::Tensor workspace;
    OP_REQUIRES_OK(context, context->allocate_temp(tensorflow::DT_INT8, {cuda::loss_workspace(args.rows, args.classes)},
                                                   &workspace));
    OP_REQUIRES_OK(context, status_of(cuda::sums(args, workspace.data(), stream_of(context))));
  }

  template <typename T>
  static void finish(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::finish(args, stream_of(context))));
  }

  template <typename T>
  static void products_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::products_grad(args, stream_of(context))));
  }

  template <typename T>
  static void bias_grad(tensorflow::OpKernelContext* context, const Arguments<T>& args) {
    OP_REQUIRES_OK(context, status_of(cuda::bias_grad(args, stream_of(context))));
  }

  // A dense block [height, count] into columns of a matrix [height, width].
  template <typename T>
  static void copy_columns(tensorflow::OpKernelContext* context, const T* block, int64_t count, T* columns,
                           int64_t width, int64_t height) {
    OP_REQUIRES_OK(context, status_of(cuda::copy_rows(block, count * sizeof(T), columns, width * sizeof(T),
                                                      count * sizeof(T), height, stream_of(context))));
  }

 private:
  static cuda::Stream stream_of(tensorflow::OpKernelContext* context);  // gpu.cc
  static absl::Status status_of(cuda::Status status);
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_GPU_H_

// The target entries of the logits, of their gradient, and the angles (core/target.h): a row of the batch per thread
#include <math.h>

#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

// A row that cannot be computed says so in each of its entries, as TensorFlow's own loss does.
template <typename T>
__device__ void fill_with_nan(T* row, int64_t classes) {
  for (int64_t c = 0; c < classes; ++c) assign(row[c], static_cast<double>(NAN));
}

template <typename T>
__device__ bool can_be_computed(const Arguments<T>& args, double lambda, int64_t row) {
  return is_good_lambda(lambda) && is_good_label(label_of(args.labels, row), args.classes);
}

template <typename T>
__global__ void __launch_bounds__(kBlock) logits_row_per_thread(Arguments<T> args) {
  const int64_t row = row_of_thread();
  if (row >= args.rows) return;
  const double lambda = *args.lam;
  if (can_be_computed(args, lambda, row)) {
    patch_logit(args, margin_share(lambda), row);
  } else {
    fill_with_nan(args.logits + row * args.classes, args.classes);
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) logits_grad_row_per_thread(Arguments<T> args) {
  const int64_t row = row_of_thread();
  if (row >= args.rows) return;
  const double lambda = *args.lam;
  if (can_be_computed(args, lambda, row)) {
    split_gradient(args, margin_share(lambda), row);
  } else {
    fill_with_nan(args.products_grad + row * args.classes, args.classes);
    store(args.geometry_grad, args.rows, row, {NAN, NAN, NAN});
  }
}

template <typename T>
__global__ void __launch_bounds__(kBlock) angles_row_per_thread(Arguments<T> args) {
  const int64_t row = row_of_thread();
  if (row < args.rows) measure_angle(args, row);
}

}  // namespace

template <typename T>
Status logits(const Arguments<T>& args, Stream stream) {
  return launch(logits_row_per_thread<T>, ceil_div(args.rows, kBlock), 1, kBlock, stream, args);
}

template <typename T>
Status logits_grad(const Arguments<T>& args, Stream stream) {
  return launch(logits_grad_row_per_thread<T>, ceil_div(args.rows, kBlock), 1, kBlock, stream, args);
}

template <typename T>
Status angles(const Arguments<T>& args, Stream stream) {
  return launch(angles_row_per_thread<T>, ceil_div(args.rows, kBlock), 1, kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T)                                \
  template Status logits<T>(const Arguments<T>&, Stream);      \
  template Status logits_grad<T>(const Arguments<T>&, Stream); \
  template Status angles<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

const char* message_of(Status status) { return cudaGetErrorString(static_cast<cudaError_t>(status)); }

Status copy(const void* from, void* to, int64_t bytes, Stream stream) {
  return cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                         static_cast<cudaStream_t>(stream));
}

Status copy_rows(const void* from, int64_t from_pitch, void* to, int64_t to_pitch, int64_t width, int64_t rows,
                 Stream stream) {
  if (width == 0 || rows == 0) return cudaSuccess;
  return cudaMemcpy2DAsync(to, static_cast<size_t>(to_pitch), from, static_cast<size_t>(from_pitch),
                           static_cast<size_t>(width), static_cast<size_t>(rows), cudaMemcpyDeviceToDevice,
                           static_cast<cudaStream_t>(stream));
}

}  // namespace cuda
}  // namespace lsoftmax

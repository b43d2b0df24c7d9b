#include "cuda/bias_grad.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kMaxWarps = 32;  // a batch of few classes has few blocks, which are as large as can be

template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp) bias_grad_column_per_lane(Arguments<T> args) {
  sum_columns<kMaxWarps>(args, blockIdx.x);
}

}  // namespace

template <typename T>
Status bias_grad(const Arguments<T>& args, Stream stream) {
  return launch(bias_grad_column_per_lane<T>, ceil_div(args.classes, kWarp), 1, kMaxWarps * kWarp, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T) template Status bias_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

#include "cuda/features_grad.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) features_grad_row_per_warp(Arguments<T> args) {
  complete_rows<kVector>(args, blockIdx.x);
}

}  // namespace

template <typename T>
Status features_grad(const Arguments<T>& args, Stream stream) {
  const bool wide = has_wide_rows(args);
  return launch(wide ? features_grad_row_per_warp<T, kWide<T>> : features_grad_row_per_warp<T, 1>,
                ceil_div(args.rows, kWarps), 1, kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T) template Status features_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

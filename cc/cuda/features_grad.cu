// features_grad[i] += g_s w_{y_i} + 2 g_A x_i with (g_s, g_A, g_B) = geometry_grad[:, i]: a row of the batch per warp
#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) features_grad_row_per_warp(Arguments<T> args) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int64_t y = label_of(args.labels, row);
  const Geometry grad = geometry_grad_of(args, row);
  const double along_w = grad.dot, along_x = 2 * grad.features_sq;
  if (y < 0 || !is_good_label(y, args.classes) || (along_w == 0 && along_x == 0)) return;
  T* gradient = args.features_grad + row * args.depth;
  walk<kVector>(args.features + row * args.depth, args.weights + y, args.classes, args.depth,
                [=](int64_t d, const Vector<T, kVector>& x, const Vector<T, kVector>& w) {
                  Vector<T, kVector> entries = vector_at<kVector>(gradient + d);
#pragma unroll
                  for (int l = 0; l < kVector; ++l) {
                    assign(entries.at[l], widen(entries.at[l]) + (along_w * widen(w.at[l]) + along_x * widen(x.at[l])));
                  }
                  vector_at<kVector>(gradient + d) = entries;
                });
}

}  // namespace

template <typename T>
Status features_grad(const Arguments<T>& args, Stream stream) {
  const bool wide = is_wide<T>(args.depth, args.features, args.features_grad);
  return launch(wide ? features_grad_row_per_warp<T, kWide<T>> : features_grad_row_per_warp<T, 1>,
                ceil_div(args.rows, kWarps), 1, kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T) template Status features_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

// features_grad[i] = h_i (features_grad[i] + g_s w_{y_i} + 2 g_A x_i): a row of the batch per warp
//
// with (g_s, g_A, g_B) = geometry_grad[:, i] and h = loss_grad grad_unit, or 1; without a target h_i features_grad[i].
#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

// gradient = scale gradient + along_w w + along_x x
template <int kVector, typename T, typename Weights>
__device__ void add_row(const T* x, const Weights& w, int64_t depth, double along_x, double along_w, double scale,
                        T* gradient) {
  walk<kVector>(x, w, depth, [=](int64_t d, const Vector<T, kVector>& xs, const Vector<T, kVector>& ws) {
    Vector<T, kVector> entries = vector_at<kVector>(gradient + d);
#pragma unroll
    for (int l = 0; l < kVector; ++l) {
      const double share = along_w * widen(ws.at[l]) + along_x * widen(xs.at[l]);
      assign(entries.at[l], scale * widen(entries.at[l]) + share);
    }
    vector_at<kVector>(gradient + d) = entries;
  });
}

template <int kVector, typename T>
__device__ void scale_row(int64_t depth, double scale, T* gradient) {
  for (int64_t d = lane_of_warp() * kVector; d < depth; d += kWarp * kVector) {
    Vector<T, kVector> entries = vector_at<kVector>(gradient + d);
#pragma unroll
    for (int l = 0; l < kVector; ++l) assign(entries.at[l], scale * widen(entries.at[l]));
    vector_at<kVector>(gradient + d) = entries;
  }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) features_grad_row_per_warp(Arguments<T> args) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int64_t y = label_of(args.labels, row);
  const Geometry<double> grad = geometry_grad_of(args, row);
  const double scale = loss_grad_of(args, row);
  const double along_w = scale * grad.dot, along_x = scale * 2 * grad.features_sq;
  if (!is_good_label(y, args.classes) || (along_w == 0 && along_x == 0 && scale == 1)) return;
  const int64_t begin = row * args.depth;
  if (y < 0) {
    scale_row<kVector>(args.depth, scale, args.features_grad + begin);
  } else if (args.target_weights != nullptr) {
    add_row<kVector>(args.features + begin, Copy<T>{args.target_weights + begin}, args.depth, along_x, along_w, scale,
                     args.features_grad + begin);
  } else {
    add_row<kVector>(args.features + begin, Column<T>{args.weights + y, args.classes}, args.depth, along_x, along_w,
                     scale, args.features_grad + begin);
  }
}

}  // namespace

template <typename T>
Status features_grad(const Arguments<T>& args, Stream stream) {
  const bool wide = is_wide<T>(args.depth, args.features, args.features_grad, args.target_weights);
  return launch(wide ? features_grad_row_per_warp<T, kWide<T>> : features_grad_row_per_warp<T, 1>,
                ceil_div(args.rows, kWarps), 1, kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T) template Status features_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

// geometry[:, i] = (x_i . w_{y_i}, |x_i|^2, |w_{y_i}|^2)        a row of the batch per warp
// target_weights[i] = w_{y_i}, or 0 without a target             where they are asked for
#include <math.h>

#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) geometry_row_per_warp(Arguments<T> args) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int64_t y = label_of(args.labels, row);
  const bool good = is_good_label(y, args.classes);
  T* const copy = args.target_weights != nullptr ? args.target_weights + row * args.depth : nullptr;
  Geometry<double> sum = {0, 0, 0};
  if (good && y >= 0) {
    walk<kVector>(args.features + row * args.depth, Column<T>{args.weights + y, args.classes}, args.depth,
                  [&sum, copy](int64_t d, const Vector<T, kVector>& x, const Vector<T, kVector>& w) {
                    if (copy != nullptr) vector_at<kVector>(copy + d) = w;
#pragma unroll
                    for (int l = 0; l < kVector; ++l) {
                      const double xl = widen(x.at[l]), wl = widen(w.at[l]);
                      sum.dot += xl * wl;
                      sum.features_sq += xl * xl;
                      sum.weights_sq += wl * wl;
                    }
                  });
  } else if (copy != nullptr) {
    for (int64_t d = lane_of_warp(); d < args.depth; d += kWarp) assign(copy[d], 0);
  }
  sum = {warp_sum(sum.dot), warp_sum(sum.features_sq), warp_sum(sum.weights_sq)};
  if (!good) sum = {NAN, NAN, NAN};
  if (lane_of_warp() == 0) store(args.geometry, args.rows, row, sum);
}

}  // namespace

template <typename T>
Status geometry(const Arguments<T>& args, Stream stream) {
  const bool wide = is_wide<T>(args.depth, args.features, args.target_weights);
  return launch(wide ? geometry_row_per_warp<T, kWide<T>> : geometry_row_per_warp<T, 1>, ceil_div(args.rows, kWarps), 1,
                kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T) template Status geometry<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

// features_grad[i] = h_i (features_grad[i] + g_s w_{y_i} + (2 g_A - r) x_i): a row of the batch per warp
//
// with (g_s, g_A, g_B) = geometry_grad[:, i], 0 without a target at hand, and h = loss_grad grad_unit, or 1.
// r = x_i . features_grad[i] / |x_i|^2 if the margin divides by the norms of the features, else 0.
#ifndef LSOFTMAX_CUDA_FEATURES_GRAD_CUH_
#define LSOFTMAX_CUDA_FEATURES_GRAD_CUH_

#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

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

// r; 0 of a row of zeros.
template <int kVector, typename T>
__device__ double radial_part(const T* x, const T* gradient, int64_t depth) {
  double dot = 0, norm_sq = 0;
  const auto add = [&](int64_t, const Vector<T, kVector>& xs, const Vector<T, kVector>& gradients) {
#pragma unroll
    for (int l = 0; l < kVector; ++l) {
      const double xl = widen(xs.at[l]);
      dot += xl * widen(gradients.at[l]);
      norm_sq += xl * xl;
    }
  };
  walk<kVector>(x, Copy<T>{gradient}, depth, add);
  dot = sum_in_lanes(dot, kWarp);
  norm_sq = sum_in_lanes(norm_sq, kWarp);
  return norm_sq == 0 ? 0 : dot / norm_sq;
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

// Whether the rows that complete_rows reads and writes allow 16 bytes at a time.
template <typename T>
bool has_wide_rows(const Arguments<T>& args) {
  const T* const lines = args.class_major ? args.weights : nullptr;
  return is_wide<T>(args.depth, args.features, args.features_grad, args.target_weights, lines);
}

// The rows of one block.
template <int kVector, typename T>
__device__ void complete_rows(const Arguments<T>& args, int64_t block) {
  const int64_t row = block * kWarps + threadIdx.x / kWarp;
  if (row >= args.rows) return;
  if (!is_good_label(label_of(args.labels, row), all_classes(args))) return;
  const int64_t c = column_of(args, row);
  const Geometry<double> grad = c >= 0 ? geometry_grad_of(args, row) : Geometry<double>{0, 0, 0};
  const double scale = loss_grad_of(args, row);
  const double along_w = scale * grad.dot;
  double along_x = scale * 2 * grad.features_sq;
  const int64_t begin = row * args.depth;
  if (args.margin.normalize_features) {
    const double radial = radial_part<kVector>(args.features + begin, args.features_grad + begin, args.depth);
    along_x = scale * ((c < 0 ? 0 : 2 * grad.features_sq) - radial);
  }
  if (along_w == 0 && along_x == 0 && scale == 1) return;
  if (c < 0 && args.margin.normalize_features) {
    const T* const x = args.features + begin;
    add_row<kVector>(x, Copy<T>{x}, args.depth, along_x, 0, scale, args.features_grad + begin);
  } else if (c < 0) {
    scale_row<kVector>(args.depth, scale, args.features_grad + begin);
  } else if (args.target_weights != nullptr || args.class_major) {
    const T* const w = args.target_weights != nullptr ? args.target_weights + begin : args.weights + c * args.depth;
    add_row<kVector>(args.features + begin, Copy<T>{w}, args.depth, along_x, along_w, scale,
                     args.features_grad + begin);
  } else {
    add_row<kVector>(args.features + begin, Column<T>{args.weights + c, args.classes}, args.depth, along_x, along_w,
                     scale, args.features_grad + begin);
  }
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_FEATURES_GRAD_CUH_

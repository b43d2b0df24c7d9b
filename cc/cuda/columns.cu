// class_factors[c]      1 / |w_c|, 0 of a zero column
// weights_grad[:, c] -= w_c (w_c . weights_grad[:, c]) / |w_c|^2
//
// A block takes 32 columns, a column per lane. Feature d belongs to warp d mod W of its W, kFeatures of them at a time;
// the warps' sums are added in their order. A thread walks its features downwards, so that registers still hold the
// first ones when the sums are known, and the cache the next: both matrices come from memory once.
//
// Of weights [C, D] a warp takes a class, its lanes side by side along the row.
#include "cuda/columns.cuh"

#include "core/half.h"
#include "core/margin.h"
#include "cuda/device.cuh"
#include "cuda/features_grad.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kMaxWarps = 16;
template <typename T>
constexpr int kFeatures = sizeof(T) == sizeof(double) ? 8 : 32;

// The features of a column that are a thread's own, in steps of kFeatures.
template <typename T>
struct OwnColumn {
  int64_t column = static_cast<int64_t>(blockIdx.x) * kWarp + lane_of_warp(), classes, depth;
  int warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;

  __device__ explicit OwnColumn(const Arguments<T>& args) : classes(args.classes), depth(args.depth) {}

  __device__ int64_t steps() const { return ceil_div(depth, static_cast<int64_t>(kFeatures<T>) * warps); }
  __device__ int64_t feature(int64_t step, int n) const { return (step * kFeatures<T> + n) * warps + warp; }

  // 0 where there is none.
  __device__ void load(const T* matrix, int64_t step, T (&to)[kFeatures<T>]) const {
#pragma unroll
    for (int n = 0; n < kFeatures<T>; ++n) {
      const int64_t d = feature(step, n);
      to[n] = column < classes && d < depth ? matrix[d * classes + column] : T{};
    }
  }
};

// The sum over the warps' values of the lane, for the first warp.
__device__ inline double sum_of_warps(const double (&of_warps)[kMaxWarps][kWarp], int warps) {
  double sum = 0;
  for (int warp = 0; warp < warps; ++warp) sum += of_warps[warp][lane_of_warp()];
  return sum;
}

template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp) class_factors_column_per_lane(Arguments<T> args) {
  __shared__ double of_warps[kMaxWarps][kWarp];
  const OwnColumn<T> own(args);
  double norm_sq = 0;
  for (int64_t step = own.steps() - 1; step >= 0; --step) {
    T w[kFeatures<T>];
    own.load(args.weights, step, w);
#pragma unroll
    for (int n = 0; n < kFeatures<T>; ++n) {
      const double wn = widen(w[n]);
      norm_sq += wn * wn;
    }
  }
  of_warps[own.warp][lane_of_warp()] = norm_sq;
  __syncthreads();
  if (own.warp > 0 || own.column >= args.classes) return;
  assign(args.class_factors[own.column], inverse_norm(sum_of_warps(of_warps, own.warps)));
}

template <typename T>
__global__ void __launch_bounds__(kMaxWarps* kWarp) take_off_radial_column_per_lane(Arguments<T> args) {
  __shared__ double dots[kMaxWarps][kWarp], norms[kMaxWarps][kWarp], along[kWarp];
  const OwnColumn<T> own(args);
  const int lane = lane_of_warp();
  T w[kFeatures<T>] = {}, gradient[kFeatures<T>] = {};
  double dot = 0, norm_sq = 0;
  for (int64_t step = own.steps() - 1; step >= 0; --step) {
    own.load(args.weights, step, w);
    own.load(args.weights_grad, step, gradient);
#pragma unroll
    for (int n = 0; n < kFeatures<T>; ++n) {
      const double wn = widen(w[n]);
      dot += wn * widen(gradient[n]);
      norm_sq += wn * wn;
    }
  }
  dots[own.warp][lane] = dot;
  norms[own.warp][lane] = norm_sq;
  __syncthreads();
  if (own.warp == 0) {
    const double all_dot = sum_of_warps(dots, own.warps), all_norm_sq = sum_of_warps(norms, own.warps);
    along[lane] = all_norm_sq == 0 ? 0 : all_dot / all_norm_sq;
  }
  __syncthreads();
  for (int64_t step = 0; step < own.steps(); ++step) {
    if (step > 0) {
      own.load(args.weights, step, w);
      own.load(args.weights_grad, step, gradient);
    }
#pragma unroll
    for (int n = 0; n < kFeatures<T>; ++n) {
      const int64_t d = own.feature(step, n);
      if (own.column >= args.classes || d >= args.depth) continue;
      assign(args.weights_grad[d * args.classes + own.column], widen(gradient[n]) - along[lane] * widen(w[n]));
    }
  }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) class_factors_class_per_warp(Arguments<T> args) {
  const int64_t c = row_of_warp();
  if (c >= args.classes) return;
  const T* const w = args.weights + c * args.depth;
  double norm_sq = 0;
  walk<kVector>(w, Copy<T>{w}, args.depth, [&](int64_t, const Vector<T, kVector>& ws, const Vector<T, kVector>&) {
#pragma unroll
    for (int l = 0; l < kVector; ++l) {
      const double wl = widen(ws.at[l]);
      norm_sq += wl * wl;
    }
  });
  norm_sq = sum_in_lanes(norm_sq, kWarp);
  if (lane_of_warp() == 0) assign(args.class_factors[c], inverse_norm(norm_sq));
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) take_off_radial_class_per_warp(Arguments<T> args) {
  const int64_t c = row_of_warp();
  if (c >= args.classes) return;
  const T* const w = args.weights + c * args.depth;
  T* const gradient = args.weights_grad + c * args.depth;
  const double along = radial_part<kVector>(w, gradient, args.depth);
  add_row<kVector>(w, Copy<T>{w}, args.depth, -along, 0, 1, gradient);
}

// As many warps as hold a column, of those that a block may have.
template <typename T>
int threads_for(int64_t depth) {
  int warps = 4;
  while (warps < kMaxWarps && warps * kFeatures<T> < depth) warps *= 2;
  return warps * kWarp;
}

}  // namespace

template <typename T>
Status class_factors(const Arguments<T>& args, Stream stream) {
  if (args.class_major) {
    const bool wide = is_wide<T>(args.depth, args.weights);
    return launch(wide ? class_factors_class_per_warp<T, kWide<T>> : class_factors_class_per_warp<T, 1>,
                  ceil_div(args.classes, kWarps), 1, kBlock, stream, args);
  }
  return launch(class_factors_column_per_lane<T>, ceil_div(args.classes, kWarp), 1, threads_for<T>(args.depth), stream,
                args);
}

template <typename T>
Status take_off_radial(const Arguments<T>& args, Stream stream) {
  if (!args.margin.normalize_weights) return cudaSuccess;
  if (args.class_major) {
    const bool wide = is_wide<T>(args.depth, args.weights, args.weights_grad);
    return launch(wide ? take_off_radial_class_per_warp<T, kWide<T>> : take_off_radial_class_per_warp<T, 1>,
                  ceil_div(args.classes, kWarps), 1, kBlock, stream, args);
  }
  return launch(take_off_radial_column_per_lane<T>, ceil_div(args.classes, kWarp), 1, threads_for<T>(args.depth),
                stream, args);
}

#define LSOFTMAX_INSTANTIATE(T)                                  \
  template Status class_factors<T>(const Arguments<T>&, Stream); \
  template Status take_off_radial<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

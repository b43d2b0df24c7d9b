// bias_grad[c] = sum over the rows i of h_i (products_grad[i, c] + [y_i = c] target_grad[i]),  h = loss_grad grad_unit
//
// A block takes 32 columns, a column per lane. Each of its kRowsAtOnce warps adds up one row of so many, and the warps'
// sums are added in their order.
#ifndef LSOFTMAX_CUDA_BIAS_GRAD_CUH_
#define LSOFTMAX_CUDA_BIAS_GRAD_CUH_

#include "core/target.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

// Rows that a thread asks for before it uses the first.
template <typename T>
constexpr int kInFlight = sizeof(T) == sizeof(double) ? 4 : 8;

template <int kRowsAtOnce, typename T>
__device__ void sum_columns(const Arguments<T>& args, int64_t block) {
  using Real = decltype(widen(T()));
  __shared__ double of_warps[kRowsAtOnce][kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = lane_of_warp();
  const int64_t column = block * kWarp + lane;
  double sum = 0;
  for (int64_t first = warp; first < args.rows && column < args.classes; first += kInFlight<T> * kRowsAtOnce) {
    Real entries[kInFlight<T>], scales[kInFlight<T>];
    int64_t targets[kInFlight<T>];
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int64_t row = first + n * kRowsAtOnce;
      const bool is_row = row < args.rows;
      entries[n] = is_row ? widen(args.products_grad[row * args.classes + column]) : 0;
      scales[n] = is_row ? static_cast<Real>(loss_grad_of(args, row)) : 1;
      targets[n] = is_row ? column_of(args, row) : kNone;
    }
    Real part = 0;
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      part += scales[n] * entries[n];
      if (targets[n] == column) sum += scales[n] * args.target_grad[first + n * kRowsAtOnce];
    }
    sum += part;
  }
  of_warps[warp][lane] = sum;
  __syncthreads();
  if (warp > 0 || column >= args.classes) return;
  for (int other = 1; other < kRowsAtOnce; ++other) sum += of_warps[other][lane];
  assign(args.bias_grad[column], sum);
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_BIAS_GRAD_CUH_

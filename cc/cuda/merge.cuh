// What the threads of a group, some lanes of a warp or a block, find in a row together: its largest logit first, then
// what is relative to it.
//
//   m = max_j z_j      S = sum_j exp(z_j - m), each thread's own terms in Real<T>, those of all in double
//   place              the first of the logits that are m
//   Z = sum_j z_j      likewise, where labels are smoothed
//
// Always in the same order: a butterfly over lanes, then one over the warps' results.
#ifndef LSOFTMAX_CUDA_MERGE_CUH_
#define LSOFTMAX_CUDA_MERGE_CUH_

#include "cuda/span.cuh"

namespace lsoftmax {
namespace cuda {

constexpr int kNoPlace = INT32_MAX;

struct Total {
  double sum;
  int place;
};

// Over `lanes` neighbours, 2 to 32, on each of them. Every lane of the warp takes part.
template <typename R>
__device__ R largest_in_lanes(R value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = larger(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  return value;
}
__device__ inline Total total_in_lanes(Total total, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    const int place = __shfl_xor_sync(0xffffffffu, total.place, distance);
    total.sum += __shfl_xor_sync(0xffffffffu, total.sum, distance);
    total.place = place < total.place ? place : total.place;
  }
  return total;
}

template <typename V>
struct OfWarps {
  V at[kWarp];
};

// Over the block, on every thread. Not again in a kernel before the block has met.
template <typename R>
__device__ R largest_in_block(R value) {
  R(&of_warps)[kWarp] = of_block<OfWarps<R>>().at;
  const int lane = lane_of_warp(), warps = static_cast<int>(blockDim.x) / kWarp;
  value = largest_in_lanes(value, kWarp);
  if (lane == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  return largest_in_lanes(lane < warps ? of_warps[lane] : minus_infinity<R>(), kWarp);
}
// Over the block, on the lanes of its first warp. Likewise.
__device__ inline Total total_in_block(Total total) {
  Total(&of_warps)[kWarp] = of_block<OfWarps<Total>>().at;
  const int lane = lane_of_warp(), warps = static_cast<int>(blockDim.x) / kWarp;
  total = total_in_lanes(total, kWarp);
  if (lane == 0) of_warps[threadIdx.x / kWarp] = total;
  __syncthreads();
  if (threadIdx.x >= kWarp) return total;
  return total_in_lanes(lane < warps ? of_warps[lane] : Total{0, kNoPlace}, kWarp);
}

struct SumOfWarps : OfWarps<double> {};
__device__ inline double sum_in_block(double value) {
  double(&of_warps)[kWarp] = of_block<SumOfWarps>().at;
  const int lane = lane_of_warp(), warps = static_cast<int>(blockDim.x) / kWarp;
  value = sum_in_lanes(value, kWarp);
  if (lane == 0) of_warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  return threadIdx.x < kWarp ? sum_in_lanes(lane < warps ? of_warps[lane] : 0, kWarp) : 0;
}

// What logits of which m is the largest are taken relative to: with none but -inf, 0, so that their exponentials are 0.
template <typename R>
__device__ R base_of(R m) {
  return m == minus_infinity<R>() ? 0 : m;
}

// The span's sums, with Z, which is added up apart: joins the target, whose product it reads. Without a finite logit
// the class is 0.
template <typename T, Classes kClasses>
__device__ Sums<double> sums_of(const Span<T, kClasses>& span, Real<T> m, const Total& total, int64_t first_class,
                                double total_of_logits) {
  const bool has_place = total.place != kNoPlace;
  Sums<double> sums = {m, total.sum, m, static_cast<double>(has_place ? span.first + total.place : 0), total_of_logits};
  if (span.target != kNowhere) {
    const Real<T> z = span.logit(span.target);
    if (z > m || (z == m && has_place && span.target < total.place)) {
      sums.best = z;
      sums.predicted = static_cast<double>(span.first + span.target);
    }
  }
  sums.predicted += static_cast<double>(first_class);
  return sums;
}

// The sums over all classes of the lanes' sums, on every lane. Every lane of the warp takes part. Z only if `smoothed`.
__device__ inline Sums<double> merged_in_lanes(Sums<double> sums, bool smoothed) {
  const double max = largest_in_lanes(sums.max, kWarp), best = largest_in_lanes(sums.best, kWarp);
  sums.sum = sum_in_lanes(rescale(sums.sum, sums.max, max), kWarp);
  if (smoothed) sums.total = sum_in_lanes(sums.total, kWarp);
  sums.predicted = -largest_in_lanes(sums.best == best ? -sums.predicted : minus_infinity<double>(), kWarp);
  sums.max = max;
  sums.best = best;
  return sums;
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_MERGE_CUH_

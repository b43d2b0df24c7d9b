// A row of plain logits z = products + bias through the threads of a group, a warp or a block: what it sums up to, and
// its gradient.
//
//   sums       m = max_j z_j      S = sum_j exp(z_j - m)      over the classes j but the target's (core/softmax.h)
//   gradient   g_j = exp(z_j - m) scale                       0 at the target
//
// z is computed in Real<T>. Memory is read and written 16 bytes at a time on 16-byte borders, wherever a row begins: of
// its first and last vector only those entries that are its own. The target's logit counts as -inf, which takes it out
// of both.
#ifndef LSOFTMAX_CUDA_LOGITS_CUH_
#define LSOFTMAX_CUDA_LOGITS_CUH_

#include <math.h>

#include "core/exponential.h"
#include "core/target.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

// What logits are computed in: float, or double for doubles.
template <typename T>
using Real = decltype(widen(T()));

// 16 bytes of a row: the unit of everything below.
template <typename T>
using Wide = Vector<T, kWide<T>>;

__device__ inline float larger(float a, float b) { return fmaxf(a, b); }  // of a NaN and a number, the number
__device__ inline double larger(double a, double b) { return fmax(a, b); }

template <typename R>
__device__ inline R minus_infinity() {
  return -static_cast<R>(INFINITY);
}

template <typename T>
__device__ inline int place_in_vector(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) / sizeof(T) % kWide<T>);
}

// One row of args.products, its classes counted from its own first one. Vector v holds those from class_of(v) on.
template <typename T>
struct Row {
  const T* products;
  const T* bias;  // or null
  T* gradient;    // or null; may be where the products are
  int64_t classes;
  int64_t target;  // or -1: not among these classes
  int lead;        // entries between the row's first vector and the row
  bool wide_bias, wide_gradient;

  __device__ Row(const Arguments<T>& args, int64_t row)
      : products(args.products + row * args.classes),
        bias(args.bias),
        gradient(args.products_grad != nullptr ? args.products_grad + row * args.classes : nullptr),
        classes(args.classes),
        lead(place_in_vector(products)),
        wide_bias(place_in_vector(bias) == lead),
        wide_gradient(place_in_vector(gradient) == lead) {
    const int64_t label = label_of(args.labels, row);
    const bool is_here = label >= args.first_class && label - args.first_class < classes;
    target = is_here ? label - args.first_class : -1;
  }

  __device__ int64_t vectors() const { return ceil_div(lead + classes, kWide<T>); }
  __device__ int64_t class_of(int64_t vector) const { return vector * kWide<T> - lead; }
  __device__ bool is_whole(int64_t c) const { return 0 <= c && c + kWide<T> <= classes; }

  // Precondition of the three: vector < vectors().
  __device__ Wide<T> load(int64_t vector) const { return entries(products, class_of(vector), true); }

  // The logits of a vector whose products are `loaded`; -inf for the target and outside the row.
  __device__ void logits(int64_t vector, const Wide<T>& loaded, Real<T>* z) const {
    const int64_t c = class_of(vector);
    Wide<T> biases;
    if (bias != nullptr) biases = entries(bias, c, wide_bias);
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) {
      z[l] = bias != nullptr ? widen(loaded.at[l]) + widen(biases.at[l]) : widen(loaded.at[l]);
    }
    if (is_whole(c) && static_cast<uint64_t>(target - c) >= kWide<T>) return;
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) {
      if (c + l < 0 || c + l >= classes || c + l == target) z[l] = minus_infinity<Real<T>>();
    }
  }

  __device__ void store(int64_t vector, const Wide<T>& values) const {
    const int64_t c = class_of(vector);
    if (is_whole(c) && wide_gradient) {
      vector_at<kWide<T>>(gradient + c) = values;
      return;
    }
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) {
      if (0 <= c + l && c + l < classes) gradient[c + l] = values.at[l];
    }
  }

 private:
  __device__ Wide<T> entries(const T* from, int64_t c, bool wide) const {
    if (is_whole(c) && wide) return vector_at<kWide<T>>(from + c);
    Wide<T> values = {};
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) {
      if (0 <= c + l && c + l < classes) values.at[l] = from[c + l];
    }
    return values;
  }
};

// The threads that share a row, and the caller's place among them.
struct Group {
  int thread, threads;
};
__device__ inline Group group_of_warp() { return {lane_of_warp(), kWarp}; }
__device__ inline Group group_of_block() { return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)}; }

// Where a row's first `count` vectors are kept between the sums and the gradient, each by the thread that reads it
// again.
template <typename T>
struct Kept {
  Wide<T>* vectors;
  int64_t count;
};

// m, S and the first class whose logit is m; of no class 0.
template <typename R>
struct Partial {
  R max;
  double sum;
  int64_t place;
};

// Vectors that a thread asks for before it uses the first: what 64 registers have room for, as 1024 threads may have.
template <typename T>
constexpr int kInFlight = sizeof(T) == sizeof(float) ? 4 : 2;

// What the caller's own vectors among [begin, end) sum up to; leaves in `kept` what belongs there. One exponential a
// logit, relative to the largest so far.
template <typename T>
__device__ Partial<Real<T>> sum_of_thread(const Row<T>& row, const Group& group, int64_t begin, int64_t end,
                                          const Kept<T>& kept) {
  using R = Real<T>;
  R max = minus_infinity<R>(), sum = 0;
  int64_t place = 0;
  for (int64_t first = begin + group.thread; first < end; first += kInFlight<T> * group.threads) {
    Wide<T> loaded[kInFlight<T>];
    R z[kInFlight<T>][kWide<T>] = {};
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int64_t vector = first + n * group.threads;
      if (vector < end) loaded[n] = row.load(vector);
    }
    R largest = minus_infinity<R>();
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int64_t vector = first + n * group.threads;
      if (vector >= end) continue;
      if (vector < kept.count) kept.vectors[vector] = loaded[n];
      row.logits(vector, loaded[n], z[n]);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) largest = larger(largest, z[n][l]);
    }
    if (largest > max) {
      sum *= exponential(max - largest);
      max = largest;
#pragma unroll
      for (int n = kInFlight<T> - 1; n >= 0; --n) {
        const int64_t vector = first + n * group.threads;
        if (vector >= end) continue;
#pragma unroll
        for (int l = kWide<T> - 1; l >= 0; --l) place = z[n][l] == largest ? row.class_of(vector) + l : place;
      }
    }
    const R finite = max == minus_infinity<R>() ? 0 : max;  // all of them -inf: their exponentials are 0
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      if (first + n * group.threads >= end) continue;
      R of_vector = 0;
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) of_vector += exponential(z[n][l] - finite);
      sum += of_vector;
    }
  }
  return {max, sum, place};
}

// Over the warp's lanes, on every lane: the largest value, and the smallest place among those that hold it.
template <typename R, typename Place>
__device__ void warp_first_of_largest(R* value, Place* place) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const R other = __shfl_xor_sync(0xffffffffu, *value, distance);
    const Place other_place = __shfl_xor_sync(0xffffffffu, *place, distance);
    if (other > *value || (other == *value && other_place < *place)) {
      *value = other;
      *place = other_place;
    }
  }
}

// What the warp's lanes sum up to together, on every lane.
template <typename R>
__device__ Partial<R> merge_in_warp(Partial<R> partial) {
  const R own = partial.max;
  warp_first_of_largest(&partial.max, &partial.place);
  const double rescaled = partial.sum == 0 ? 0 : partial.sum * exponential(own - partial.max);
  partial.sum = warp_sum(rescaled);
  return partial;
}

// What the block's threads sum up to together, on every lane of its first warp. Not twice in a kernel.
template <typename R>
__device__ Partial<R> merge_in_block(Partial<R> partial) {
  __shared__ Partial<R> of_warps[kWarp];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = lane_of_warp();
  partial = merge_in_warp(partial);
  if (lane == 0) of_warps[warp] = partial;
  __syncthreads();
  if (warp > 0) return partial;
  if (lane < static_cast<int>(blockDim.x) / kWarp) {
    partial = of_warps[lane];
  } else {
    partial = {minus_infinity<R>(), 0, 0};
  }
  return merge_in_warp(partial);
}

// The sums of the vectors [begin, end) from those of all their threads: joins the target, whose product it reads.
template <typename T>
__device__ Sums<double> sums_of(const Row<T>& row, int64_t begin, int64_t end, int64_t first_class,
                                const Partial<Real<T>>& partial) {
  Sums<double> sums = {partial.max, partial.sum, partial.max, static_cast<double>(partial.place)};
  if (row.target >= 0 && row.class_of(begin) <= row.target && row.target < row.class_of(end)) {
    const Real<T> product = widen(row.products[row.target]);
    const double z = row.bias != nullptr ? product + widen(row.bias[row.target]) : product;
    if (z > sums.best || (z == sums.best && row.target < partial.place)) {
      sums.best = z;
      sums.predicted = static_cast<double>(row.target);
    }
  }
  sums.predicted += static_cast<double>(first_class);
  return sums;
}

// Writes the gradient of the caller's own vectors among [begin, end), the last ones first: of what was read before and
// is not kept, they may still be in the cache.
template <typename T>
__device__ void differentiate(const Row<T>& row, const Group& group, int64_t begin, int64_t end, const Kept<T>& kept,
                              const Normalizer<double>& normalizer) {
  using R = Real<T>;
  const R max = static_cast<R>(normalizer.max), scale = static_cast<R>(normalizer.scale);
  const int64_t step = kInFlight<T> * group.threads;
  for (int64_t tile = ceil_div(end - begin, step) - 1; tile >= 0; --tile) {
    const int64_t first = begin + tile * step + group.thread;
    Wide<T> values[kInFlight<T>] = {};
    if (scale != 0) {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
        const int64_t vector = first + n * group.threads;
        if (vector < end) values[n] = vector < kept.count ? kept.vectors[vector] : row.load(vector);
      }
    }
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int64_t vector = first + n * group.threads;
      if (vector >= end) continue;
      if (scale != 0) {
        R z[kWide<T>];
        row.logits(vector, values[n], z);
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) assign(values[n].at[l], exponential(z[l] - max) * scale);
      }
      row.store(vector, values[n]);
    }
  }
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LOGITS_CUH_

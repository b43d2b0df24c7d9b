// Where a row of args.products, or a part of it, lies in memory.
//
//   | ends: entries | whole vectors of 16 bytes on borders of 16 bytes ...      | ends: entries |
//     before                                                                      after
//
// Rows begin anywhere. What is not a whole vector, at most 2 (kWide - 1) entries, is read and written one by one; so
// nothing is touched that is not the row's own, and the loops over whole vectors have no test of its borders in them.
// A place in a span is an offset from its first whole vector: 32 bits.
#ifndef LSOFTMAX_CUDA_SPAN_CUH_
#define LSOFTMAX_CUDA_SPAN_CUH_

#include "core/target.h"
#include "cuda/packed.cuh"

namespace lsoftmax {
namespace cuda {

template <typename T>
__device__ inline int place_in_vector(const T* address) {
  return static_cast<int>(static_cast<unsigned>(reinterpret_cast<uintptr_t>(address)) / sizeof(T) % kWide<T>);
}

// The threads that share a span, and the caller's place among them.
struct Group {
  int thread, threads;
};
__device__ inline Group group_of_block() { return {static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)}; }

// What makes logits of the products p, class by class. A kernel that knows no terms has none of their work in it.
enum class Classes {
  kPlain,  // p
  kBias,   // p + bias_c
  kTerms,  // p of_row factor_c, p + bias_c or p, with terms: labels may be smoothed
};

constexpr int kNowhere = INT32_MIN;

template <typename T, Classes kClasses>
struct Span {
  const T* products;       // of the first whole vector
  const T* bias;           // of the same class; of kTerms it may be null,
  const Real<T>* factors;  // and so may they
  T* gradient;             // likewise; may be where the products are
  int64_t first;           // that class, counted from the row's own first one
  Real<T> of_row = 1;      // of kTerms, the kernel sets it
  int vectors, before, after;
  int target;  // or kNowhere
  bool wide_classes, wide_gradient;

  // The row, of less than 2^31 classes.
  __device__ Span(const Arguments<T>& args, int64_t row) {
    const T* const own = args.products + row * args.classes;
    const int lead = -place_in_vector(own) & (kWide<T> - 1), classes = static_cast<int>(args.classes);
    before = lead < classes ? lead : classes;
    vectors = (classes - before) / kWide<T>;
    after = classes - before - end();
    point(args, row, own, before);
  }

  // Part `part` of its parts of `most` vectors; the last one has what others leave.
  __device__ Span(const Arguments<T>& args, int64_t row, int64_t part, int most, bool is_last) {
    const T* const own = args.products + row * args.classes;
    const int64_t lead = -place_in_vector(own) & (kWide<T> - 1);
    const int64_t ahead = lead < args.classes ? lead : args.classes, whole = (args.classes - ahead) / kWide<T>;
    const int64_t begin = part * most < whole ? part * most : whole, left = whole - begin;
    before = part == 0 ? static_cast<int>(ahead) : 0;
    vectors = left < most ? static_cast<int>(left) : most;
    after = is_last ? static_cast<int>(args.classes - ahead - whole * kWide<T>) : 0;
    point(args, row, own, ahead + begin * kWide<T>);
  }

  __device__ int end() const { return vectors * kWide<T>; }

  // Vector n, n < vectors, of the products.
  __device__ Registers<T> load(int n) const { return load_registers(products, n); }

  // The logits of vector n, whose products are v. -inf stays -inf; with terms, whose factors may be 0, the target's
  // becomes it here.
  __device__ void logits(int n, const Registers<T>& v, Real<T>* z) const {
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) z[l] = entry<T>(v, l);
    if constexpr (kClasses == Classes::kBias) add_biases(n, z);
    if constexpr (kClasses == Classes::kTerms) {
      if (factors != nullptr) {
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) z[l] *= of_row;
        apply_factors(n, z);
      } else if (bias != nullptr) {
        add_biases(n, z);
      }
      const int place = target_in(n);
      if (place < 0 || place >= kWide<T>) return;
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) z[l] = place == l ? minus_infinity<Real<T>>() : z[l];
    }
  }

  // The gradients in the products of vector n, from those in its logits.
  __device__ void to_products(int n, Real<T>* gradients) const {
    if (kClasses != Classes::kTerms || factors == nullptr) return;
    apply_factors(n, gradients);
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) gradients[l] = fitted<T>(gradients[l]);
  }
  __device__ Real<T> to_product(int place, Real<T> gradient) const {
    return kClasses == Classes::kTerms && factors != nullptr ? fitted<T>(gradient * factors[place]) : gradient;
  }

  // The gradient of a row with these numbers; clear_target comes after it.
  template <typename SlopeOfRow>
  __device__ static SlopeOfRow slope(const Normalizer<double>& normalizer) {
    return SlopeOfRow(normalizer, kClasses == Classes::kTerms ? normalizer.addend : -0.0);
  }
  // Whether it is 0 throughout.
  __device__ static bool is_flat(const Normalizer<double>& normalizer) {
    return normalizer.scale == 0 && (kClasses != Classes::kTerms || normalizer.addend == 0);
  }

  // The sum of the logits z of vector n but for the target's.
  __device__ Real<T> total(int n, const Real<T>* z) const {
    Real<T> sum = 0;
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) sum += target_in(n) == l ? 0 : z[l];
    return sum;
  }
  __device__ Real<T> total_of_ends(const Group& group) const {
    Real<T> sum = 0;
    at_ends(group, [&](int place, Real<T> z) { sum += place == target ? 0 : z; });
    return sum;
  }

  // `wide`: wide_gradient, if it is known.
  __device__ void store(int n, const Registers<T>& v, bool wide) const {
    if (wide) return store_registers(v, gradient, n);
    T* const to = gradient + n * kWide<T>;
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) to[l] = stored_entry<T>(v, l);
  }

  // work(place, logit) for each of the caller's own entries at the ends; the target's logit is -inf.
  template <typename Work>
  __device__ void at_ends(const Group& group, const Work& work) const {
    for (int e = group.thread; e < before + after; e += group.threads) {
      const int place = e < before ? e - before : e - before + end();
      work(place, place == target ? minus_infinity<Real<T>>() : logit(place));
    }
  }

  // The gradient of a row without a target, whatever its logits are.
  __device__ void store_zeros(const Group& group) const {
    for (int n = group.thread; n < vectors; n += group.threads) store(n, Registers<T>{}, wide_gradient);
    at_ends(group, [&](int place, Real<T>) { assign(gradient[place], 0); });
  }

  // Clears the target's gradient, by the thread that wrote it: an end, or what has(vector) says is its own. Without an
  // addend it is 0 as it is, or NaN.
  template <typename Has>
  __device__ void clear_target(const Group& group, const Normalizer<double>& normalizer, const Has& has) const {
    const bool has_addend = kClasses == Classes::kTerms && (normalizer.addend < 0 || normalizer.addend > 0);
    if (!has_addend || target == kNowhere) return;
    const bool is_end = target < 0 || target >= end();
    const int of_ends = target < 0 ? target + before : target + before - end();
    if (is_end ? of_ends % group.threads == group.thread : has(target / kWide<T>)) assign(gradient[target], 0);
  }

  __device__ Real<T> logit(int place) const {
    if constexpr (kClasses == Classes::kBias) return widen(products[place]) + widen(bias[place]);
    if constexpr (kClasses == Classes::kTerms) {
      if (factors != nullptr) return widen(products[place]) * of_row * factors[place];
      if (bias != nullptr) return widen(products[place]) + widen(bias[place]);
    }
    return widen(products[place]);
  }

 private:
  __device__ void add_biases(int n, Real<T>* z) const {
    if (wide_classes) {
      const Registers<T> biases = load_registers(bias, n);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) z[l] += entry<T>(biases, l);
    } else {
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) z[l] += widen(bias[n * kWide<T> + l]);
    }
  }
  __device__ void apply_factors(int n, Real<T>* entries) const {
    constexpr int kVectors = kWide<T> / kWide<Real<T>>;
    const Real<T>* const factors = opaque(this->factors);  // or registers would keep them from pass to pass
    if (wide_classes) {
#pragma unroll
      for (int r = 0; r < kVectors; ++r) {
        const Registers<Real<T>> own = load_registers(factors, n * kVectors + r);
#pragma unroll
        for (int l = 0; l < kWide<Real<T>>; ++l) entries[r * kWide<Real<T>> + l] *= own.at[l];
      }
    } else {
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) entries[l] *= factors[n * kWide<T> + l];
    }
  }

  // The target's place counted from vector n on; it may lie in another one.
  __device__ int target_in(int n) const {
    return static_cast<int>(static_cast<unsigned>(target) - static_cast<unsigned>(n * kWide<T>));
  }

  // Everything else, from the first whole vector's class on.
  __device__ void point(const Arguments<T>& args, int64_t row, const T* own, int64_t begin) {
    first = begin;
    products = opaque(own + first);
    bias = kClasses == Classes::kBias ? opaque(args.bias + first) : nullptr;
    factors = nullptr;
    if (kClasses == Classes::kTerms && args.bias != nullptr) bias = args.bias + first;
    if (kClasses == Classes::kTerms && args.class_factors != nullptr) factors = args.class_factors + first;
    gradient = args.products_grad;
    if (gradient != nullptr) gradient += row * args.classes + first;
    gradient = opaque(gradient);
    wide_classes = factors != nullptr ? place_in_vector(factors) == 0 : place_in_vector(bias) == 0;
    wide_gradient = place_in_vector(gradient) == 0;
    const int64_t column = column_of(args, row);
    const int64_t place = column >= 0 ? column - first : INT64_MAX;
    target = -before <= place && place < end() + after ? static_cast<int>(place) : kNowhere;
  }
};

// Where the target is, if a vector holds it.
template <typename T, Classes kClasses>
__device__ inline Hole<T> target_of(const Span<T, kClasses>& span) {
  const bool is_here = 0 <= span.target && span.target < span.end();
  return {is_here ? span.target / kWide<T> : -1, span.target & (kWide<T> - 1)};
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_SPAN_CUH_

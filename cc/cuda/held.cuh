// A row of logits that its threads hold in registers: read once, written once.
//
//   thread i of G holds the vectors i, i + G, i + 2 G, ...     kHeld of them at the most
//
// The target's product becomes -inf where it is held, once, so that no loop asks for the target. With terms
// Span::logits does it. float and double have room for what halves have not: their logits with the bias or the factors,
// and after the sum the exponentials, of which the gradient is a multiple. Halves make their logits, and take their
// exponentials, again.
#ifndef LSOFTMAX_CUDA_HELD_CUH_
#define LSOFTMAX_CUDA_HELD_CUH_

#include "cuda/merge.cuh"

namespace lsoftmax {
namespace cuda {

// Vectors a thread: with 8, 32 of its 64 registers, as 1024 threads may have. Two halves of a register need room
// unpacked, an exponential in double as well.
template <typename T>
constexpr int kHeld = sizeof(T) == sizeof(float) ? 8 : 4;

template <typename T, Classes kClasses>
class Held {
 public:
  using R = Real<T>;

  __device__ Held(const Span<T, kClasses>& span, const Group& group) : group_(group) {
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) {
      v_[n] = lowest_vector<T>();
      if (vector(n) < span.vectors) v_[n] = span.load(vector(n));
    }
  }

  // The vectors become the row's own logits. Apart from the loads, as they take their time.
  __device__ void prepare(const Span<T, kClasses>& span) {
    if (kClasses != Classes::kPlain && !kIsHalf<T>) make_logits(span);
    if (kClasses == Classes::kTerms) return;  // whose target is -inf by now
    const Hole<T> target = target_of(span);
    bool is_held = false;
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) is_held |= vector(n) == target.vector();
    if (is_held) {
#pragma unroll
      for (int n = 0; n < kHeld<T>; ++n) target.apply(vector(n), v_[n]);
    }
    forget();
  }

  // The largest of the thread's logits.
  __device__ R largest(const Span<T, kClasses>& span) {
    R m = minus_infinity<R>();
    if (kMakesAgain) {
#pragma unroll
      for (int n = 0; n < kHeld<T>; ++n) {
        R z[kWide<T>];
        logits(span, n, z);
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) m = larger(m, z[l]);
      }
    } else {
      typename Packed<T>::Register largest = Packed<T>::lowest();
#pragma unroll
      for (int n = 0; n < kHeld<T>; ++n) largest = larger_of<T>(largest, v_[n]);
      m = largest_entry<T>(largest);
    }
    span.at_ends(group_, [&](int, R z) { m = larger(m, z); });
    forget();
    return m;
  }

  // The first place of the thread's that holds m, which is `own`, its largest logit, or is not there.
  __device__ int place_of(const Span<T, kClasses>& span, R m, R own) {
    int place = kNoPlace;
    if (own != m || m == minus_infinity<R>()) return place;
#pragma unroll
    for (int n = kHeld<T> - 1; n >= 0; --n) {
      R z[kWide<T>];
      logits(span, n, z);
#pragma unroll
      for (int l = kWide<T> - 1; l >= 0; --l) place = z[l] == m ? vector(n) * kWide<T> + l : place;
    }
    span.at_ends(group_, [&](int at, R z) { place = z == m && at < place ? at : place; });
    forget();
    return place;
  }

  // The sum of the thread's logits but the target's; before the next, where labels are smoothed.
  __device__ R total(const Span<T, kClasses>& span) const {
    R sum = span.total_of_ends(group_);
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) {
      if (vector(n) >= span.vectors) continue;
      R z[kWide<T>];
      logits(span, n, z);
      sum += span.total(vector(n), z);
    }
    return sum;
  }

  // The sum of the thread's exp(z - base). From here on float and double hold the exponentials.
  __device__ R sum(const Span<T, kClasses>& span, R base) {
    R sum = 0;
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) {
      R z[kWide<T>], of_vector = 0;
      logits(span, n, z);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) {
        z[l] = kIsHalf<T> ? quick_exp(z[l] - base) : exponential(z[l] - base);
        of_vector += z[l];
      }
      if (!kIsHalf<T>) v_[n] = narrowed<T>(z);
      sum += of_vector;
    }
    span.at_ends(group_, [&](int, R z) { sum += exponential(z - base); });
    forget();
    return sum;
  }

  // Writes the gradient.
  __device__ void differentiate(const Span<T, kClasses>& span, const Normalizer<double>& normalizer) const {
    if (span.is_flat(normalizer)) return span.store_zeros(group_);
    const Slope<T> slope = span.template slope<Slope<T>>(normalizer);
    if (span.wide_gradient) {
      store<true>(span, slope);
    } else {
      store<false>(span, slope);
    }
    span.at_ends(group_, [&](int at, R z) { assign(span.gradient[at], span.to_product(at, slope.at(z))); });
    span.clear_target(group_, normalizer, [&](int vector) { return vector % group_.threads == group_.thread; });
  }

  // Runs work() with the thread's vectors in `memory` [kHeld], so that it has their registers.
  template <typename Work>
  __device__ void stand_aside(Registers<T>* memory, const Work& work) {
    const int first = opaque(0);  // or the compiler would see that they come back as they are, and keep them
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) memory[first + n] = v_[n];
    work();
    const int again = opaque(0);
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) v_[n] = memory[again + n];
  }

 private:
  static constexpr bool kMakesAgain = kClasses != Classes::kPlain && kIsHalf<T>;

  __device__ int vector(int n) const { return n * group_.threads + group_.thread; }

  __device__ void forget() {
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) forget_entries<T>(v_[n]);
  }

  template <bool kWideGradient>
  __device__ void store(const Span<T, kClasses>& span, const Slope<T>& slope) const {
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) {
      if (vector(n) >= span.vectors) continue;
      R g[kWide<T>];
      logits(span, n, g);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) g[l] = of_held(slope, g[l]);
      span.to_products(vector(n), g);
      span.store(vector(n), narrowed<T>(g), kWideGradient);
    }
  }

  // The gradient of a logit of which `held` is held.
  __device__ static R of_held(const Slope<T>& slope, R held) {
    if constexpr (kIsHalf<T>) {
      return slope.at(held);
    } else {
      return slope.of(held);
    }
  }

  // Of what is held as vector n.
  __device__ void logits(const Span<T, kClasses>& span, int n, R* z) const {
    if (kMakesAgain && vector(n) < span.vectors) return span.logits(vector(n), v_[n], z);
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) z[l] = entry<T>(v_[n], l);
  }

  __device__ void make_logits(const Span<T, kClasses>& span) {
#pragma unroll
    for (int n = 0; n < kHeld<T>; ++n) {
      if (vector(n) >= span.vectors) continue;
      R z[kWide<T>];
      span.logits(vector(n), v_[n], z);
      v_[n] = narrowed<T>(z);
    }
  }

  const Group group_;
  Registers<T> v_[kHeld<T>];
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_HELD_CUH_

// A row of logits, or a part of it, that is too long for registers: its threads walk it twice, a few vectors each at a
// time, for the sums and for the gradient.
//
//   tile t of thread i of G: the vectors  t U G + i + {0, G, ..., (U - 1) G},    U = kInFlight
//
// All of a tile are asked for before the first is used. The maximum of a tile comes first, then its exponentials,
// relative to the largest so far: one rescaling a tile. What `kept` has room for is read from memory once.
#ifndef LSOFTMAX_CUDA_STREAMED_CUH_
#define LSOFTMAX_CUDA_STREAMED_CUH_

#include "cuda/merge.cuh"

namespace lsoftmax {
namespace cuda {

// What 64 registers have room for, as 1024 threads may have.
template <typename T>
constexpr int kInFlight = sizeof(T) == sizeof(float) ? 4 : 2;

// A span's first `count` vectors, each kept by the thread that reads it again.
template <typename T>
struct Kept {
  Registers<T>* vectors;
  int count;
};

template <typename T, bool kBias>
class Streamed {
 public:
  using R = Real<T>;

  __device__ Streamed(const Span<T, kBias>& span, const Group& group, const Kept<T>& kept)
      : span_(span), group_(group), kept_(kept), with_target_(target_vector(span)) {}

  // Walks the span for m and S of the thread's own logits, and leaves in `kept` what belongs there.
  __device__ void sum_up() {
    for (int tile = 0; tile < tiles(); ++tile) {
      Registers<T> v[kInFlight<T>];
      load(tile, v, false);
      const R largest = largest_of(tile, v);
      if (largest > max_) {
        sum_ *= quick_exp(max_ - largest);
        max_ = largest;
        best_ = tile;
      }
      add(tile, v, base_of(max_));
    }
    span_.at_ends(group_, [&](int, R z) {
      if (z > max_) {
        sum_ *= quick_exp(max_ - z);
        max_ = z;
        best_ = -1;
      }
      sum_ += quick_exp(z - base_of(max_));
    });
  }

  __device__ R largest() const { return max_; }

  // S relative to the largest logit of all threads.
  __device__ double sum(R m) const {
    return sum_ == 0 ? 0 : static_cast<double>(sum_) * exponential(base_of(max_) - base_of(m));
  }

  // The first place of the thread's that holds m, if it is there. Reads again the tile where its maximum came up.
  __device__ int place_of(R m) const {
    int place = kNoPlace;
    if (max_ != m || m == minus_infinity<R>()) return place;
    span_.at_ends(group_, [&](int at, R z) { place = z == m && at < place ? at : place; });
    if (best_ < 0) return place;
    Registers<T> v[kInFlight<T>];
    load(best_, v, true);
#pragma unroll
    for (int n = kInFlight<T> - 1; n >= 0; --n) {
      R z[kWide<T>];
      logits(vector(best_, n), v[n], z);
#pragma unroll
      for (int l = kWide<T> - 1; l >= 0; --l) {
        const int at = vector(best_, n) * kWide<T> + l;
        place = z[l] == m && at < place ? at : place;
      }
    }
    return place;
  }

  // Writes the gradient, the last tiles first: of what was read before and is not kept, they may still be in the cache.
  __device__ void differentiate(const Normalizer<double>& normalizer) const {
    if (normalizer.scale == 0) return span_.store_zeros(group_);
    const Slope<T> slope(normalizer);
    for (int tile = tiles() - 1; tile >= 0; --tile) {
      Registers<T> v[kInFlight<T>];
      load(tile, v, true);
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
        if (vector(tile, n) >= span_.vectors) continue;
        R g[kWide<T>];
        logits(vector(tile, n), v[n], g);
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) g[l] = slope.at(g[l]);
        span_.store(vector(tile, n), narrowed<T>(g));
      }
    }
    span_.at_ends(group_, [&](int at, R z) { assign(span_.gradient[at], slope.at(z)); });
  }

 private:
  __device__ int vector(int tile, int n) const { return (tile * kInFlight<T> + n) * group_.threads + group_.thread; }
  __device__ int tiles() const {
    const int step = kInFlight<T> * group_.threads;
    return (span_.vectors + step - 1) / step;
  }

  // The tile's products, -inf for the target and beyond the span.
  __device__ void load(int tile, Registers<T> (&v)[kInFlight<T>], bool again) const {
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int at = vector(tile, n);
      v[n] = lowest_vector<T>();
      if (at < span_.vectors) v[n] = again && at < kept_.count ? kept_.vectors[at] : span_.load(at);
    }
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int at = vector(tile, n);
      if (at == with_target_) drop<T>(v[n], span_.target % kWide<T>);
      if (!again && at < span_.vectors && at < kept_.count) kept_.vectors[at] = v[n];
    }
  }

  // Of vector `at`, which is v.
  __device__ void logits(int at, const Registers<T>& v, R* z) const {
    if (kBias && at < span_.vectors) return span_.logits(at, v, z);
#pragma unroll
    for (int l = 0; l < kWide<T>; ++l) z[l] = entry<T>(v, l);
  }

  __device__ R largest_of(int tile, const Registers<T> (&v)[kInFlight<T>]) const {
    R m = minus_infinity<R>();
    if (kBias) {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
        R z[kWide<T>];
        logits(vector(tile, n), v[n], z);
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) m = larger(m, z[l]);
      }
      return m;
    }
    typename Packed<T>::Register largest = Packed<T>::lowest();
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) largest = larger_of<T>(largest, v[n]);
    return largest_entry<T>(largest);
  }

  __device__ void add(int tile, const Registers<T> (&v)[kInFlight<T>], R base) {
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      R z[kWide<T>], of_vector = 0;
      logits(vector(tile, n), v[n], z);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) of_vector += quick_exp(z[l] - base);
      sum_ += of_vector;
    }
  }

  const Span<T, kBias>& span_;
  const Group group_;
  const Kept<T> kept_;
  const int with_target_;
  R max_ = minus_infinity<R>(), sum_ = 0;
  int best_ = -1;  // the tile where max_ came up; -1: at an end, or nowhere
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_STREAMED_CUH_

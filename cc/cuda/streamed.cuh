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

template <typename T, Classes kClasses>
class Streamed {
 public:
  using R = Real<T>;

  __device__ Streamed(const Span<T, kClasses>& span, const Group& group, const Kept<T>& kept)
      : span_(span), group_(group), kept_(kept), target_(target_of(span)), tile_of_target_(target_.vector() / step()) {}

  // Walks the span for m and S of the thread's own logits, and Z if labels are smoothed; leaves in `kept` what belongs
  // there.
  __device__ void sum_up(bool smoothed) { smoothed ? sum_up<true>() : sum_up<false>(); }

  __device__ R largest() const { return max_; }

  // S relative to the largest logit of all threads.
  __device__ double sum(R m) const {
    return sum_ == 0 ? 0 : static_cast<double>(sum_) * exponential(base_of(max_) - base_of(m));
  }

  // Z
  __device__ double total() const { return total_; }

  // The first place of the thread's that holds m, if it is there. Reads again the tile where its maximum came up.
  __device__ int place_of(R m) const {
    int place = kNoPlace;
    if (max_ != m || m == minus_infinity<R>()) return place;
    span_.at_ends(group_, [&](int at, R z) { place = z == m && at < place ? at : place; });
    if (best_ < 0) return place;
    Registers<T> v[kInFlight<T>];
    R z[kInFlight<T>][kWide<T>];
    load(best_, v, true);
    logits(best_, v, z);
#pragma unroll
    for (int n = kInFlight<T> - 1; n >= 0; --n) {
#pragma unroll
      for (int l = kWide<T> - 1; l >= 0; --l) {
        const int at = vector(best_, n) * kWide<T> + l;
        place = z[n][l] == m && at < place ? at : place;
      }
    }
    return place;
  }

  // Writes the gradient, the last tiles first: of what was read before and is not kept, they may still be in the cache.
  __device__ void differentiate(const Normalizer<double>& normalizer) const {
    if (span_.is_flat(normalizer)) return span_.store_zeros(group_);
    const Slope<T> slope = span_.slope(normalizer);
    for (int tile = tiles() - 1; tile >= 0; --tile) {
      Registers<T> v[kInFlight<T>];
      R g[kInFlight<T>][kWide<T>];
      load(tile, v, true);
      logits(tile, v, g);
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) g[n][l] = slope.at(g[n][l]);
        if (vector(tile, n) < span_.vectors) span_.to_products(vector(tile, n), g[n]);
        v[n] = narrowed<T>(g[n]);
      }
      if (is_whole(tile) && span_.wide_gradient) {
#pragma unroll
        for (int n = 0; n < kInFlight<T>; ++n) span_.store(vector(tile, n), v[n], true);
      } else {
#pragma unroll
        for (int n = 0; n < kInFlight<T>; ++n) {
          if (vector(tile, n) < span_.vectors) span_.store(vector(tile, n), v[n], span_.wide_gradient);
        }
      }
    }
    span_.at_ends(group_, [&](int at, R z) { assign(span_.gradient[at], slope.at(z) * span_.factor(at)); });
    span_.clear_target(group_, normalizer);
  }

 private:
  template <bool kSmoothed>
  __device__ void sum_up() {
    for (int tile = 0; tile < tiles(); ++tile) {
      Registers<T> v[kInFlight<T>];
      R z[kInFlight<T>][kWide<T>];
      load(tile, v, false);
      logits(tile, v, z);
      const R largest = largest_of(v, z);
      if (largest > max_) {
        sum_ *= quick_exp(max_ - largest);
        max_ = largest;
        best_ = tile;
      }
      const R base = base_of(max_);
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
        R of_vector = 0;
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) of_vector += quick_exp(z[n][l] - base);
        sum_ += of_vector;
        if (kSmoothed && vector(tile, n) < span_.vectors) total_ += span_.total(vector(tile, n), z[n]);
      }
    }
    if (kSmoothed) total_ += span_.total_of_ends(group_);
    span_.at_ends(group_, [&](int, R z) {
      if (z > max_) {
        sum_ *= quick_exp(max_ - z);
        max_ = z;
        best_ = -1;
      }
      sum_ += quick_exp(z - base_of(max_));
    });
  }

  __device__ int step() const { return kInFlight<T> * group_.threads; }
  __device__ int tiles() const { return (span_.vectors + step() - 1) / step(); }
  __device__ int vector(int tile, int n) const { return tile * step() + n * group_.threads + group_.thread; }
  __device__ bool is_whole(int tile) const { return (tile + 1) * step() <= span_.vectors; }

  // The tile's products, -inf for the target and beyond the span.
  __device__ void load(int tile, Registers<T> (&v)[kInFlight<T>], bool again) const {
    if (is_whole(tile)) {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) v[n] = load(vector(tile, n), again);
    } else {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) {
        v[n] = lowest_vector<T>();
        if (vector(tile, n) < span_.vectors) v[n] = load(vector(tile, n), again);
      }
    }
    if (tile == tile_of_target_) {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) target_.apply(vector(tile, n), v[n]);
    }
    if (again) return;
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int at = vector(tile, n);
      if (at < kept_.count && at < span_.vectors) kept_.vectors[at] = v[n];
    }
  }
  __device__ Registers<T> load(int at, bool again) const {
    return again && at < kept_.count ? kept_.vectors[at] : span_.load(at);
  }

  __device__ void logits(int tile, const Registers<T> (&v)[kInFlight<T>], R (&z)[kInFlight<T>][kWide<T>]) const {
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      if (kClasses != Classes::kPlain && vector(tile, n) < span_.vectors) {
        span_.logits(vector(tile, n), v[n], z[n]);
      } else {
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) z[n][l] = entry<T>(v[n], l);
      }
    }
  }

  // v: the products of the logits z.
  __device__ static R largest_of(const Registers<T> (&v)[kInFlight<T>], const R (&z)[kInFlight<T>][kWide<T>]) {
    R m = minus_infinity<R>();
    typename Packed<T>::Register largest = Packed<T>::lowest();
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      largest = larger_of<T>(largest, v[n]);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) m = larger(m, z[n][l]);
    }
    return kClasses != Classes::kPlain ? m : largest_entry<T>(largest);
  }

  const Span<T, kClasses>& span_;
  const Group group_;
  const Kept<T> kept_;
  const Hole<T> target_;
  const int tile_of_target_;  // or 0: there is none
  R max_ = minus_infinity<R>(), sum_ = 0, total_ = 0;
  int best_ = -1;  // the tile where max_ came up; -1: at an end, or nowhere
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_STREAMED_CUH_

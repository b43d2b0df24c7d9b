// A span of logits that is too long for registers, in tiles of some vectors a thread.
//
//   tile t of lane i of warp w of W: the vectors  (t W + w) 32 U + i + {0, 32, ..., 32 (U - 1)}
//
// so that a thread's vectors are a constant apart, which addresses have room for.
//
// The maximum of a tile comes first, then its exponentials, relative to the largest so far: one rescaling a tile.
#ifndef LSOFTMAX_CUDA_TILES_CUH_
#define LSOFTMAX_CUDA_TILES_CUH_

#include "cuda/merge.cuh"

namespace lsoftmax {
namespace cuda {

// U = kVectors.
template <typename T, Classes kClasses, int kVectors>
class Tiles {
 public:
  using R = Real<T>;
  using Vectors = Registers<T>[kVectors];

  __device__ R largest() const { return max_; }

  // S relative to the largest logit of all threads.
  __device__ double sum(R m) const {
    return sum_ == 0 ? 0 : static_cast<double>(sum_) * exponential(base_ - base_of(m));
  }

  // Z, if labels are smoothed.
  __device__ double total() const { return total_; }

 protected:
  using Logits = R[kVectors][kWide<T>];

  __device__ Tiles(const Span<T, kClasses>& span, const Group& group, bool smoothed)
      : span_(span),
        group_(group),
        smoothed_(kClasses == Classes::kTerms && smoothed),
        own_(group.thread / kWarp * (kWarp * kVectors) + group.thread % kWarp) {}

  __device__ int step() const { return kVectors * group_.threads; }
  __device__ int tiles() const { return (span_.vectors + step() - 1) / step(); }
  __device__ int vector(int tile, int n) const { return tile * step() + own_ + n * kWarp; }
  // The tile where the thread has the target, or -1.
  __device__ int tile_of_target() const {
    const int vector = span_.target / kWide<T>, beyond = vector % step() - own_;
    const bool is_own = beyond >= 0 && beyond < kWarp * kVectors && beyond % kWarp == 0;
    return is_own && 0 <= span_.target && span_.target < span_.end() ? vector / step() : -1;
  }
  __device__ int whole_tiles() const { return span_.vectors / step(); }

  // The tile's vectors load(at); -inf beyond the span. All are asked for before the first is used. kWhole: the tile is.
  template <bool kWhole, typename Load>
  __device__ void load(int tile, Vectors& v, const Load& load) const {
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      if (!kWhole) v[n] = lowest_vector<T>();
      if (kWhole || vector(tile, n) < span_.vectors) v[n] = load(vector(tile, n));
    }
  }

  template <bool kWhole>
  __device__ void logits(int tile, const Vectors& v, Logits& z) const {
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      if (kClasses != Classes::kPlain && (kWhole || vector(tile, n) < span_.vectors)) {
        span_.logits(vector(tile, n), v[n], z[n]);
      } else {
#pragma unroll
        for (int l = 0; l < kWide<T>; ++l) z[n][l] = entry<T>(v[n], l);
      }
    }
  }

  // Takes the tile's logits, whose products are v, into m, S and Z of the thread's own. kBackwards: the tiles come last
  // ones first; of those that hold m the first counts in either order.
  template <bool kWhole, bool kBackwards>
  __device__ void take(int tile, const Vectors& v) {
    Logits z;
    logits<kWhole>(tile, v, z);
    const R largest = largest_of(v, z);
    if (largest > max_) update(largest, tile);
    if (kBackwards && largest == max_) best_ = tile;
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      R of_vector = quick_exp(z[n][0] - base_);
#pragma unroll
      for (int l = 1; l < kWide<T>; ++l) of_vector += quick_exp(z[n][l] - base_);
      sum_ += of_vector;
    }
    if (!smoothed_) return;
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      if (kWhole || vector(tile, n) < span_.vectors) total_ += span_.total(vector(tile, n), z[n]);
    }
  }
  __device__ void take_ends() {
    span_.at_ends(group_, [&](int, R z) {
      if (z > max_) update(z, -1);
      sum_ += quick_exp(z - base_);
    });
    if (smoothed_) total_ += span_.total_of_ends(group_);
  }

  // The first place of the thread's that holds m, if it is there; load(v) reads again the tile where m came up.
  template <typename Load>
  __device__ int place_of(R m, const Load& load) const {
    int place = kNoPlace;
    if (max_ != m || m == minus_infinity<R>()) return place;
    span_.at_ends(group_, [&](int at, R z) { place = z == m && at < place ? at : place; });
    if (best_ < 0) return place;
    Vectors v;
    Logits z;
    load(best_, v);
    logits<false>(best_, v, z);
#pragma unroll
    for (int n = kVectors - 1; n >= 0; --n) {
#pragma unroll
      for (int l = kWide<T> - 1; l >= 0; --l) {
        const int at = vector(best_, n) * kWide<T> + l;
        place = z[n][l] == m && at < place ? at : place;
      }
    }
    return place;
  }

  // Writes the gradient of the tile, whose products are v. `wide`: span_.wide_gradient, if it is known.
  template <bool kWhole>
  __device__ void differentiate(int tile, Vectors& v, const FastSlope<T>& slope, bool wide) const {
    Logits g;
    logits<kWhole>(tile, v, g);
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) g[n][l] = slope.at(g[n][l]);
      if (kWhole || vector(tile, n) < span_.vectors) span_.to_products(vector(tile, n), g[n]);
      v[n] = narrowed<T>(g[n]);
    }
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      if (kWhole || vector(tile, n) < span_.vectors) span_.store(vector(tile, n), v[n], wide);
    }
  }
  // After the tiles.
  __device__ void differentiate_ends(const FastSlope<T>& slope, const Normalizer<double>& normalizer) const {
    span_.at_ends(group_, [&](int at, R z) { assign(span_.gradient[at], span_.to_product(at, slope.at(z))); });
    span_.clear_target(group_, normalizer, [&](int) { return tile_of_target() >= 0; });
  }

  const Span<T, kClasses>& span_;
  const Group group_;
  const bool smoothed_;

 private:
  __device__ void update(R max, int tile) {
    sum_ *= quick_exp(max_ - max);
    base_ = max_ = max;
    best_ = tile;
  }

  // v: the products of the logits z.
  __device__ static R largest_of(const Vectors& v, const Logits& z) {
    R m = z[0][0];
    typename Packed<T>::Register largest = v[0].at[0];
#pragma unroll
    for (int n = 0; n < kVectors; ++n) {
      largest = larger_of<T>(largest, v[n]);
#pragma unroll
      for (int l = 0; l < kWide<T>; ++l) m = larger(m, z[n][l]);
    }
    return kClasses != Classes::kPlain ? m : largest_entry<T>(largest);
  }

  const int own_;                                                 // the thread's first vector of a tile
  R max_ = minus_infinity<R>(), sum_ = 0, base_ = 0, total_ = 0;  // base_of(max_)
  int best_ = -1;  // the tile where max_ came up; -1: at an end, or nowhere
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_TILES_CUH_

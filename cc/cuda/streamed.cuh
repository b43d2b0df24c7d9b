// A row of logits, or a part of it, that is too long for registers (tiles.cuh): its threads walk it twice, for the sums
// and for the gradient. What `kept` has room for is read from memory once.
#ifndef LSOFTMAX_CUDA_STREAMED_CUH_
#define LSOFTMAX_CUDA_STREAMED_CUH_

#include "cuda/tiles.cuh"

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
class Streamed : public Tiles<T, kClasses, kInFlight<T>> {
  using Base = Tiles<T, kClasses, kInFlight<T>>;
  using typename Base::R;
  using typename Base::Vectors;

 public:
  __device__ Streamed(const Span<T, kClasses>& span, const Group& group, const Kept<T>& kept, bool smoothed)
      : Base(span, group, smoothed), kept_(kept), target_(target_of(span)), tile_of_target_(this->tile_of_target()) {}

  // Walks the span for m, S and Z of the thread's own logits, and leaves in `kept` what belongs there.
  __device__ void sum_up() {
    const int whole = this->whole_tiles();
    for (int tile = 0; tile < whole; ++tile) sum_up<true>(tile);
    if (whole < this->tiles()) sum_up<false>(whole);
    this->take_ends();
  }

  __device__ int place_of(R m) const {
    return Base::place_of(m, [&](int tile, Vectors& v) { read<false>(tile, v, true); });
  }

  // Writes the gradient, the last tiles first: of what was read before and is not kept, they may still be in the cache.
  __device__ void differentiate(const Normalizer<double>& normalizer) const {
    if (this->span_.is_flat(normalizer)) return this->span_.store_zeros(this->group_);
    const FastSlope<T> slope = this->span_.template slope<FastSlope<T>>(normalizer);
    this->span_.wide_gradient ? write<true>(slope) : write<false>(slope);
    this->differentiate_ends(slope, normalizer);
  }

 private:
  template <bool kWhole>
  __device__ void sum_up(int tile) {
    Vectors v;
    read<kWhole>(tile, v, false);
    keep<kWhole>(tile, v);
    this->template take<kWhole, false>(tile, v);
  }

  template <bool kWideGradient>
  __device__ void write(const FastSlope<T>& slope) const {
    const int whole = this->whole_tiles();
    Vectors v;
    if (whole < this->tiles()) {
      read<false>(whole, v, true);
      Base::template differentiate<false>(whole, v, slope, kWideGradient);
    }
    for (int tile = whole - 1; tile >= 0; --tile) {
      read<true>(tile, v, true);
      Base::template differentiate<true>(tile, v, slope, kWideGradient);
    }
  }

  // The tile's products, -inf for the target and beyond the span.
  template <bool kWhole>
  __device__ void read(int tile, Vectors& v, bool again) const {
    this->template load<kWhole>(
        tile, v, [&](int at) { return again && at < kept_.count ? kept_.vectors[at] : this->span_.load(at); });
    if (tile == tile_of_target_) {
#pragma unroll
      for (int n = 0; n < kInFlight<T>; ++n) target_.apply(this->vector(tile, n), v[n]);
    }
  }
  template <bool kWhole>
  __device__ void keep(int tile, const Vectors& v) const {
#pragma unroll
    for (int n = 0; n < kInFlight<T>; ++n) {
      const int at = this->vector(tile, n);
      if (at < kept_.count && (kWhole || at < this->span_.vectors)) kept_.vectors[at] = v[n];
    }
  }

  const Kept<T> kept_;
  const Hole<T> target_;
  const int tile_of_target_;
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_STREAMED_CUH_

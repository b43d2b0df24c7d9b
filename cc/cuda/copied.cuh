// A row of logits, or a part of it, in shared memory, where bulk copies put it (cluster.cuh): read from memory once,
// while the gradient of the row before is being written.
//
//   tiles  0 .. K - 1   in shared memory; a copy and an arrival each
//   tiles  K ..         what has no room: read when the sums are made, and again for the gradient, from the cache if it
//                       is still there
//
// Each walk begins with the last tile. As soon as each thread has its logits of a tile for the gradient, the tile of
// the next row is asked for. The target's entry becomes -inf in shared memory, once.
#ifndef LSOFTMAX_CUDA_COPIED_CUH_
#define LSOFTMAX_CUDA_COPIED_CUH_

#include "cuda/cluster.cuh"
#include "cuda/streamed.cuh"

namespace lsoftmax {
namespace cuda {

// The block's shared memory for the rows, one after the other, that it has a part of.
template <typename T>
struct Copies {
  Registers<T>* vectors;
  Arrival* arrivals;  // [tiles]
  int kept, step;     // vectors, of all and of a tile

  __device__ int tiles() const { return (kept + step - 1) / step; }

  // One thread, once.
  __device__ void prepare() const {
#pragma unroll 1
    for (int tile = 0; tile < tiles(); ++tile) init_arrival(arrivals + tile);
    publish_arrivals();
  }
  // One thread, once a turn: the tile of a span that begins at `products` with `count` vectors. It may have none.
  __device__ void ask(int tile, const T* products, int count) const {
    const int begin = tile * step, left = (count < kept ? count : kept) - begin;
    const int here = left < 0 ? 0 : left < step ? left : step;
    before_copies();  // the tile has been read
    announce(arrivals + tile, here * 16);
    if (here > 0) bulk_copy(vectors + begin, products + begin * kWide<T>, here * 16, arrivals + tile);
  }
};

// A float's bias or factor takes as many registers as the float.
template <typename T, Classes kClasses>
constexpr int kCopiedVectors = kClasses != Classes::kPlain ? 2 : kInFlight<T>;

template <typename T, Classes kClasses>
class Copied : public Tiles<T, kClasses, kCopiedVectors<T, kClasses>> {
  static constexpr int kVectors = kCopiedVectors<T, kClasses>;
  using Base = Tiles<T, kClasses, kVectors>;
  using typename Base::R;
  using typename Base::Vectors;

 public:
  __device__ Copied(const Span<T, kClasses>& span, const Group& group, const Copies<T>& copies, bool smoothed)
      : Base(span, group, smoothed), copies_(copies), tile_of_target_(this->tile_of_target()) {
    const int here = copies.kept < span.vectors ? copies.kept : span.vectors;
    whole_ = here / this->step();
    here_ = (here + this->step() - 1) / this->step();
  }

  // Walks the span for m, S and Z of the thread's own logits, as `turn` rows came before it. The last tiles first: what
  // is not on its way, then what was asked for first.
  __device__ void sum_up(unsigned turn) {
    Vectors v;
    for (int tile = this->tiles() - 1; tile >= here_; --tile) {
      read_beyond(tile, v);
      this->template take<false, true>(tile, v);
    }
    if (whole_ < here_) {
      await(copies_.arrivals + whole_, turn & 1);
      if (whole_ == tile_of_target_ && this->span_.target < copies_.kept * kWide<T>) remove_target();
      read(whole_, v);
      this->template take<false, true>(whole_, v);
    }
    for (int tile = whole_ - 1; tile >= 0; --tile) {
      await(copies_.arrivals + tile, turn & 1);
      if (tile == tile_of_target_) remove_target();
      read_whole(tile, v);
      this->template take<true, true>(tile, v);
    }
    this->take_ends();
  }

  __device__ int place_of(R m) const {
    return Base::place_of(m, [&](int tile, Vectors& v) { read(tile, v); });
  }

  // Writes the gradient, and calls again(tile) for each tile of `copies` when its threads have read it.
  template <typename Again>
  __device__ void differentiate(const Normalizer<double>& normalizer, const Again& again) const {
    if (this->span_.is_flat(normalizer)) {
#pragma unroll 1
      for (int tile = copies_.tiles() - 1; tile >= 0; --tile) again(tile);
      return this->span_.store_zeros(this->group_);
    }
    const FastSlope<T> slope = this->span_.template slope<FastSlope<T>>(normalizer);
    this->span_.wide_gradient ? write<true>(slope, again) : write<false>(slope, again);
    this->differentiate_ends(slope, normalizer);
  }

 private:
  template <bool kWideGradient, typename Again>
  __device__ void write(const FastSlope<T>& slope, const Again& again) const {
    Vectors v;
    for (int tile = this->tiles() - 1; tile >= here_; --tile) {
      read_beyond(tile, v);
      Base::template differentiate<false>(tile, v, slope, kWideGradient);
    }
    if (whole_ < here_) read(whole_, v);
#pragma unroll 1
    for (int tile = copies_.tiles() - 1; tile >= whole_; --tile) again(tile);
    if (whole_ < here_) Base::template differentiate<false>(whole_, v, slope, kWideGradient);
    for (int tile = whole_ - 1; tile >= 0; --tile) {
      read_whole(tile, v);
      again(tile);
      Base::template differentiate<true>(tile, v, slope, kWideGradient);
    }
  }

  // Of a tile that has arrived as a whole.
  __device__ void read_whole(int tile, Vectors& v) const {
    this->template load<true>(tile, v, [&](int at) { return copies_.vectors[at]; });
  }
  // Of one that has no room, or is at the border; what has room has arrived.
  __device__ void read_beyond(int tile, Vectors& v) const {
    this->template load<false>(tile, v, [&](int at) { return this->span_.load(at); });
    fill_hole(tile, v);
  }
  __device__ void read(int tile, Vectors& v) const {
    this->template load<false>(tile, v,
                               [&](int at) { return at < copies_.kept ? copies_.vectors[at] : this->span_.load(at); });
    fill_hole(tile, v);
  }
  __device__ void fill_hole(int tile, Vectors& v) const {
    if (tile != tile_of_target_) return;
    const Hole<T> target = target_of(this->span_);
#pragma unroll
    for (int n = 0; n < kVectors; ++n) target.apply(this->vector(tile, n), v[n]);
  }
  __device__ void remove_target() const {
    assign(reinterpret_cast<T*>(copies_.vectors)[this->span_.target], minus_infinity<R>());
    before_copies();
  }

  const Copies<T> copies_;
  const int tile_of_target_;
  int whole_, here_;  // tiles that are in shared memory as a whole, and with that of which only a part is
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_COPIED_CUH_

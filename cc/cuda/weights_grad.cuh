// weights_grad[:, y] += sum over the rows i of class y of h_i (g_s x_i + 2 g_B w_y)
//
// with (g_s, g_A, g_B) = geometry_grad[:, i] and h = loss_grad grad_unit, or 1. If the margin divides by the norms of
// the weights, a kernel before takes off what came in along them (columns.cuh).
//
// A block takes a chunk of the order of the labels and kTileDepth features, and adds up the classes that begin there:
//
//   1.  a row per group of lanes: each row's share goes into shared memory, turned there
//   2.  a class per lane: the shares of its rows go into the gradient, in one addition an entry; classes side by side
//       ask for their columns together (of a gradient [C, D], which has a row a class: a class per warp)
//
// A class that goes on in the next chunk is the last of its own. All groups of the block together add up its rows
// before. In a large batch those may be very many: there a kernel before adds up each span of the order that is one
// class, and of these the block takes the sum.
#ifndef LSOFTMAX_CUDA_WEIGHTS_GRAD_CUH_
#define LSOFTMAX_CUDA_WEIGHTS_GRAD_CUH_

#include "core/target.h"
#include "cuda/device.cuh"
#include "cuda/label_order.cuh"

namespace lsoftmax {
namespace cuda {

constexpr int64_t kSpan = 256;  // rows
static_assert(kSpan % kPlaces == 0, "a span is made of whole chunks");

// Of each span that is one class, its sums; null in a batch of kFewRows or less.
struct Spans {
  double* along_x = nullptr;  // [spans, depth]: of h g_s x
  double* along_w = nullptr;  // [spans]: of 2 h g_B
};

// Launches what makes the order, unless args.label_order has it, and the spans.
template <typename T>
Status prepare_classes(const Arguments<T>& args, LabelOrder* order, Spans* spans, Stream stream);

// A chunk and a tile each.
template <typename T>
int64_t blocks_of_classes(const Arguments<T>& args) {
  return ceil_div(args.rows, kPlaces) * ceil_div(args.depth, kTileDepth);
}

// Of a block, in shared memory.
struct Shares {
  double along_x[kPlaces][kTileDepth + 1];  // of each place, or of each group: h g_s x; + 1 against bank conflicts
  double along_w[kPlaces];                  // 2 h g_B
};

// What a row adds, by the factors of x and of w.
struct Factors {
  double along_x, along_w;

  __device__ bool none() const { return along_x == 0 && along_w == 0; }
};
template <typename T>
__device__ Factors factors_of(const Arguments<T>& args, int64_t row) {
  const Geometry<double> grad = geometry_grad_of(args, row);
  const double scale = loss_grad_of(args, row);
  return {scale * grad.dot, 2 * (scale * grad.weights_sq)};
}

// The features of a row that are a lane's own, of a tile that begins at `first_d`.
template <int kVector, typename T>
struct OwnFeatures {
  Vector<T, kVector> at[LanesOfTile<kVector>::kSteps] = {};

  __device__ OwnFeatures(const LanesOfTile<kVector>& group, const T* row, int64_t first_d, int64_t depth) {
#pragma unroll
    for (int s = 0; s < group.kSteps; ++s) {
      const int64_t d = first_d + group.depth(s);
      if (d < depth) at[s] = vector_at<kVector>(row + d);
    }
  }

  __device__ T of(int own) const { return at[own / kVector].at[own % kVector]; }
};

// Adds up a class that has the places [begin, end), by the whole block; `shares` is free to use. Thread t gets the sum
// along x of feature first_d + t, and each the one along w.
template <int kVector, typename T>
__device__ Factors sum_class(const Arguments<T>& args, const LabelOrder& order, int64_t begin, int64_t end,
                             const Spans& spans, int64_t first_d, Shares* shares) {
  const LanesOfTile<kVector> group;
  constexpr int kOwn = group.kSteps * kVector;
  double along_x[kOwn] = {}, along_w = 0;
  const auto add_rows = [&](int64_t from, int64_t to) {
#pragma unroll 4
    for (int64_t n = from + group.index; n < to; n += group.kGroups) {
      const int64_t row = order.rows[n];
      const Factors factors = factors_of(args, row);
      const OwnFeatures<kVector, T> x(group, args.features + row * args.depth, first_d, args.depth);
      if (factors.none()) continue;
      along_w += factors.along_w;
#pragma unroll
      for (int l = 0; l < kOwn; ++l) along_x[l] += factors.along_x * widen(x.of(l));
    }
  };
  const int64_t first_span = ceil_div(begin, kSpan), last_span = end / kSpan;
  if (spans.along_x == nullptr || first_span >= last_span) {
    add_rows(begin, end);
  } else {
    add_rows(begin, first_span * kSpan);
    for (int64_t n = first_span + group.index; n < last_span; n += group.kGroups) {
      along_w += spans.along_w[n];
#pragma unroll
      for (int l = 0; l < kOwn; ++l) {
        const int64_t d = first_d + group.feature(l);
        if (d < args.depth) along_x[l] += spans.along_x[n * args.depth + d];
      }
    }
    add_rows(last_span * kSpan, end);
  }
#pragma unroll
  for (int l = 0; l < kOwn; ++l) shares->along_x[group.index][group.feature(l)] = along_x[l];
  if (group.lane == 0) shares->along_w[group.index] = along_w;
  __syncthreads();
  Factors sum = {0, 0};
  for (int n = 0; n < group.kGroups; ++n) {
    if (threadIdx.x < kTileDepth) sum.along_x += shares->along_x[n][threadIdx.x];
    sum.along_w += shares->along_w[n];
  }
  __syncthreads();
  return sum;
}

// The span of a block, if it is one class.
template <int kVector, typename T>
__device__ void sum_span(const Arguments<T>& args, const LabelOrder& order, const Spans& spans, int64_t block) {
  __shared__ Shares shares;
  const int64_t tiles = ceil_div(args.depth, kTileDepth), span = block / tiles, first_d = block % tiles * kTileDepth;
  const int64_t begin = span * kSpan, end = begin + kSpan;
  if (end > args.rows || order.labels[begin] < 0 || order.labels[begin] != order.labels[end - 1]) return;
  const Factors sum = sum_class<kVector>(args, order, begin, end, Spans(), first_d, &shares);
  const int64_t d = first_d + threadIdx.x;
  if (threadIdx.x < kTileDepth && d < args.depth) spans.along_x[span * args.depth + d] = sum.along_x;
  if (threadIdx.x == 0 && first_d == 0) spans.along_w[span] = sum.along_w;
}

// Adds to the gradient the shares of the classes, each of which begins at a place and ends before ends[place]; lanes lie
// side by side along a row of it.
template <bool kClassMajor, typename T>
__device__ void add_shares(const Arguments<T>& args, const Shares& shares, const int64_t* labels, const int* ends,
                           int64_t first_d) {
  constexpr int kEntries = kTileDepth / kWarps, kAcross = kTileDepth / kWarp;
  static_assert(kEntries == kAcross * kPlaces / kWarps, "a thread has as many entries in both layouts");
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = lane_of_warp();
  const auto place_of = [&](int n) { return kClassMajor ? warp + n / kAcross * kWarps : lane; };
  const auto feature_of = [&](int n) { return kClassMajor ? lane + n % kAcross * kWarp : warp + n * kWarps; };
  const auto offset_of = [&](int64_t label, int64_t d) {
    return kClassMajor ? label * args.depth + d : d * args.classes + label;
  };
  const bool copied = args.target_weights != nullptr;
  T entries[kEntries] = {}, ws[kEntries] = {};
#pragma unroll
  for (int n = 0; n < kEntries; ++n) {
    const int place = place_of(n);
    const int64_t d = first_d + feature_of(n);
    if (ends[place] == 0 || d >= args.depth) continue;
    const int64_t offset = offset_of(labels[place], d);
    entries[n] = args.weights_grad[offset];
    if (!copied && shares.along_w[place] != 0) ws[n] = args.weights[offset];
  }
#pragma unroll
  for (int n = 0; n < kEntries; ++n) {
    const int place = place_of(n), feature = feature_of(n);
    const int64_t d = first_d + feature;
    if (ends[place] == 0 || d >= args.depth) continue;
    const double along_w = copied ? 0 : shares.along_w[place];
    double share = along_w != 0 ? along_w * widen(ws[n]) : 0;
    for (int own = place; own < ends[place]; ++own) share += shares.along_x[own][feature];
    if (share == 0) continue;  // without a margin the entry stays as it is, to the sign of a zero
    assign(entries[n], widen(entries[n]) + share);
    args.weights_grad[offset_of(labels[place], d)] = entries[n];
  }
}

// The classes that begin in the chunk of a block.
template <int kVector, typename T>
__device__ void add_classes(const Arguments<T>& args, const LabelOrder& order, const Spans& spans, int64_t block) {
  __shared__ Shares shares;
  __shared__ int64_t labels[kPlaces], rows[kPlaces];
  __shared__ Factors factors[kPlaces];
  __shared__ int ends[kPlaces];  // of the class that begins at a place; 0: none does
  const LanesOfTile<kVector> group;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t tiles = ceil_div(args.depth, kTileDepth), first_d = block % tiles * kTileDepth;
  const int64_t first = block / tiles * kPlaces;
  const int64_t last = first + kPlaces < args.rows ? first + kPlaces : args.rows;
  const int count = static_cast<int>(last - first);
  const bool copied = args.target_weights != nullptr;

  if (thread < count) {
    labels[thread] = order.labels[first + thread];
    rows[thread] = order.rows[first + thread];
    factors[thread] = labels[thread] >= 0 ? factors_of(args, rows[thread]) : Factors{0, 0};
  }
  __syncthreads();
  const int64_t before = first > 0 ? order.labels[first - 1] : -1, after = last < args.rows ? order.labels[last] : -1;
  const int64_t last_label = labels[count - 1];
  const bool goes_on = last_label >= 0 && last_label == after;
  const int whole = goes_on ? static_cast<int>(lower_bound(labels, 0, count, last_label)) : count;
  const bool is_long = goes_on && (whole > 0 || before != last_label);  // the class that goes on begins here
  if (whole == 0 && !is_long) return;
  if (is_long) {
    const int64_t end = upper_bound(order.labels, last, args.rows, last_label);
    const Factors sum = sum_class<kVector>(args, order, first + whole, end, spans, first_d, &shares);
    const int64_t d = first_d + thread;
    if (thread < kTileDepth && d < args.depth) {
      const double w = copied && sum.along_w != 0 ? widen(args.target_weights[rows[whole] * args.depth + d]) : 0;
      shares.along_x[whole][thread] = sum.along_x + (copied && sum.along_w != 0 ? sum.along_w * w : 0);
    }
    if (thread == 0) shares.along_w[whole] = sum.along_w;
  }
  if (thread < kPlaces) {
    const bool begins =
        thread < whole && labels[thread] >= 0 && (thread > 0 ? labels[thread - 1] : before) != labels[thread];
    int end = thread;
    double along_w = 0;
    for (; begins && end < whole && labels[end] == labels[thread]; ++end) along_w += factors[end].along_w;
    if (begins) shares.along_w[thread] = along_w;
    ends[thread] = begins ? end : is_long && thread == whole ? whole + 1 : 0;
  }
  __syncthreads();

#pragma unroll
  for (int n = 0; n < kPlaces / group.kGroups; ++n) {
    const int place = group.index + n * group.kGroups;
    if (place >= whole || labels[place] < 0) continue;
    const int64_t row = rows[place] * args.depth;
    const double along_x = factors[place].along_x, along_w = copied && ends[place] > 0 ? shares.along_w[place] : 0;
    double share[group.kSteps * kVector] = {};
    if (!factors[place].none()) {
      const OwnFeatures<kVector, T> x(group, args.features + row, first_d, args.depth);
#pragma unroll
      for (int l = 0; l < group.kSteps * kVector; ++l) share[l] = along_x * widen(x.of(l));
    }
    if (along_w != 0) {
      const OwnFeatures<kVector, T> w(group, args.target_weights + row, first_d, args.depth);
#pragma unroll
      for (int l = 0; l < group.kSteps * kVector; ++l) share[l] += along_w * widen(w.of(l));
    }
#pragma unroll
    for (int l = 0; l < group.kSteps * kVector; ++l) shares.along_x[place][group.feature(l)] = share[l];
  }
  __syncthreads();

  if (args.class_major) {
    add_shares<true>(args, shares, labels, ends, first_d);
  } else {
    add_shares<false>(args, shares, labels, ends, first_d);
  }
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_WEIGHTS_GRAD_CUH_

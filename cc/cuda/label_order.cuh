// The rows of a batch in the order of their labels: what core/groups.h is to the CPU.
//
// Rows of one class lie side by side there, and so do those of neighbouring classes, whose columns of a [D, C] matrix
// share the sectors of 32 bytes that memory is read and written in: kernels take a chunk of kPlaces neighbours a block.
//
// The place of a row in a small batch is the number of those before it, counted one by one: N^2 comparisons, but none
// waits for another, and all are one launch. Of a larger batch, tiles are ordered so and then merged. It is a sort of
// our own because the order must not vary from run to run, its memory is the caller's, and it runs wherever the other
// kernels do.
#ifndef LSOFTMAX_CUDA_LABEL_ORDER_CUH_
#define LSOFTMAX_CUDA_LABEL_ORDER_CUH_

#include <stdint.h>

#include "core/arguments.h"
#include "core/inline.h"
#include "core/target.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

constexpr int kPlaces = 32;            // neighbours, a chunk
constexpr int64_t kFewRows = 4096;     // of which one launch makes the order
constexpr int64_t kRankedTile = 1024;  // rows of a batch of more
constexpr int kRankedByBlock = 32;     // rows
static_assert(kRankedTile % kRankedByBlock == 0, "a block ranks rows of one tile");

// In device memory: labels [rows] ascending, counted from the first class at hand, and the row that each came from,
// ascending among equals. A label that is none of the classes at hand stands as -1, before all others.
struct LabelOrder {
  int64_t* labels;
  int64_t* rows;
};

// The order lies in args.label_order, or else in the workspace, of which these are the bytes.
inline int64_t label_order_workspace(int64_t rows) { return 4 * rows * static_cast<int64_t>(sizeof(int64_t)); }

template <typename T>
LabelOrder label_order_of(const Arguments<T>& args) {
  int64_t* const memory = args.label_order != nullptr ? args.label_order : static_cast<int64_t*>(args.workspace);
  return {memory, memory + args.rows};
}

// Whose order it is: that of labels among the classes at hand.
struct OrderedLabels {
  Labels labels;
  int64_t first, classes;
};

// Launches what fills `order`, with the second half of the workspace as scratch.
Status fill(const LabelOrder& order, const OrderedLabels& labels, int64_t rows, void* workspace, Stream stream);

template <typename T>
Status fill(const LabelOrder& order, const Arguments<T>& args, Stream stream) {
  return fill(order, {args.labels, args.range.first, args.classes}, args.rows, args.workspace, stream);
}

// The first place in [begin, end) of the ascending `labels` that holds more than `label` (or, of lower_bound, no
// less), or `end`.
LSOFTMAX_INLINE int64_t upper_bound(const int64_t* labels, int64_t begin, int64_t end, int64_t label) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (labels[middle] <= label) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}
LSOFTMAX_INLINE int64_t lower_bound(const int64_t* labels, int64_t begin, int64_t end, int64_t label) {
  return upper_bound(labels, begin, end, label - 1);
}

#if defined(__CUDACC__) || defined(LSOFTMAX_CUDA_ON_CPU)

// The label of a row of the batch as it stands in the order.
__device__ inline int64_t ordered_label(const OrderedLabels& of, int64_t row) {
  const int64_t column = column_of(label_of(of.labels, row), of.first, of.classes);
  return column >= 0 ? column : -1;
}

// Puts the rows kRankedByBlock block, ... into the order of their tile, by kBlock threads, several a row.
__device__ inline void rank_rows(const OrderedLabels& labels, int64_t rows, int64_t block, const LabelOrder& ranked) {
  constexpr int kStage = 1024, kThreads = kBlock / kRankedByBlock;
  __shared__ int64_t stage[kStage];
  const int thread = static_cast<int>(threadIdx.x), part = thread % kThreads;
  const int64_t row = block * kRankedByBlock + thread / kThreads;
  const int64_t tile = rows > kFewRows ? kRankedTile : kFewRows;
  const int64_t begin = block * kRankedByBlock / tile * tile;
  const int64_t end = begin + tile < rows ? begin + tile : rows;
  const int64_t label = row < end ? ordered_label(labels, row) : 0;
  int before = 0;
  for (int64_t first = begin; first < end; first += kStage) {
    const int count = end - first < kStage ? static_cast<int>(end - first) : kStage;
    for (int n = thread; n < count; n += kBlock) stage[n] = ordered_label(labels, first + n);
    __syncthreads();
    const int64_t earlier = row - first < count ? row - first : count;  // of equals, earlier rows come first
    int n = part;
    for (; n < earlier; n += kThreads) before += stage[n] <= label ? 1 : 0;
    for (; n < count; n += kThreads) before += stage[n] < label ? 1 : 0;
    __syncthreads();
  }
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    before += __shfl_xor_sync(0xffffffffu, before, distance);
  }
  if (part > 0 || row >= end) return;
  ranked.labels[begin + before] = label;
  ranked.rows[begin + before] = row;
}

#endif

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LABEL_ORDER_CUH_

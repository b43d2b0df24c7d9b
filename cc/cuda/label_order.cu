#include "cuda/label_order.cuh"

#include "core/validate.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kTile = 1024;  // rows that one block sorts

// Bitonic sort of (label, place) in shared memory, `tile` <= kTile of them, a power of two: a pair per thread.
__global__ void __launch_bounds__(kTile / 2)
    sort_tile_per_block(Labels labels, int64_t rows, int64_t classes, int tile, LabelOrder sorted) {
  __shared__ int64_t label[kTile];
  __shared__ int place[kTile];
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * tile;
  const int threads = static_cast<int>(blockDim.x), thread = static_cast<int>(threadIdx.x);
  for (int n = thread; n < tile; n += threads) {
    label[n] = INT64_MAX;  // beyond the batch: behind all others
    place[n] = n;
    if (begin + n < rows) {
      const int64_t y = label_of(labels, begin + n);
      label[n] = is_good_label(y, classes) ? y : -1;
    }
  }
  for (int width = 2; width <= tile; width *= 2) {
    for (int distance = width / 2; distance > 0; distance /= 2) {
      __syncthreads();
      if (thread >= tile / 2) continue;
      const int low = 2 * thread - (thread & (distance - 1)), high = low + distance;
      const bool ascending = (low & width) == 0;
      const bool after = label[low] != label[high] ? label[low] > label[high] : place[low] > place[high];
      if (after == ascending) {
        const int64_t y = label[low];
        const int n = place[low];
        label[low] = label[high];
        place[low] = place[high];
        label[high] = y;
        place[high] = n;
      }
    }
  }
  __syncthreads();
  for (int n = thread; n < tile; n += threads) {
    if (begin + n >= rows) continue;
    sorted.labels[begin + n] = label[n];
    sorted.rows[begin + n] = begin + place[n];
  }
}

// Merges runs of `run` sorted rows in pairs: each thread finds the place of one row.
__global__ void __launch_bounds__(kBlock)
    merge_row_per_thread(LabelOrder from, int64_t rows, int64_t run, LabelOrder to) {
  const int64_t place = row_of_thread();
  if (place >= rows) return;
  const int64_t label = from.labels[place];
  const int64_t own = place / run, other = own ^ 1;
  const int64_t begin = other * run < rows ? other * run : rows;
  const int64_t end = begin + run < rows ? begin + run : rows;
  // Of equal labels those of the earlier run come first.
  const int64_t before =
      (other < own ? upper_bound(from.labels, begin, end, label) : lower_bound(from.labels, begin, end, label)) - begin;
  const int64_t target = (own < other ? own : other) * run + (place - own * run) + before;
  to.labels[target] = label;
  to.rows[target] = from.rows[place];
}

}  // namespace

int64_t label_order_workspace(int64_t rows) { return 4 * rows * static_cast<int64_t>(sizeof(int64_t)); }

Status label_order(const Labels& labels, int64_t rows, int64_t classes, void* workspace, LabelOrder* order,
                   Stream stream) {
  int64_t* const memory = static_cast<int64_t*>(workspace);
  LabelOrder from = {memory, memory + rows}, to = {memory + 2 * rows, memory + 3 * rows};
  int tile = kTile;
  while (tile / 2 >= rows && tile > 2) tile /= 2;
  const int threads = tile / 2 < kWarp ? kWarp : tile / 2;
  Status status =
      launch(sort_tile_per_block, ceil_div(rows, tile), 1, threads, stream, labels, rows, classes, tile, from);
  for (int64_t run = tile; run < rows && status == 0; run *= 2) {
    status = launch(merge_row_per_thread, ceil_div(rows, kBlock), 1, kBlock, stream, from, rows, run, to);
    const LabelOrder merged = to;
    to = from;
    from = merged;
  }
  *order = from;
  return status;
}

}  // namespace cuda
}  // namespace lsoftmax

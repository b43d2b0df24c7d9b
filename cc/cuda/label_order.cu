#include "cuda/label_order.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kBlock) rank_rows_per_block(OrderedLabels labels, int64_t rows, LabelOrder ranked) {
  rank_rows(labels, rows, blockIdx.x, ranked);
}

constexpr int64_t kWays = 8;

// Merges runs of `run` ordered rows, kWays into one: each thread finds the place of one row.
__global__ void __launch_bounds__(kBlock)
    merge_row_per_thread(LabelOrder from, int64_t rows, int64_t run, LabelOrder to) {
  const int64_t place = row_of_thread();
  if (place >= rows) return;
  const int64_t label = from.labels[place];
  const int64_t own = place / run, first = own / kWays * kWays;
  int64_t target = first * run + (place - own * run);
#pragma unroll
  for (int n = 0; n < kWays; ++n) {
    const int64_t other = first + n, begin = other * run, end = begin + run < rows ? begin + run : rows;
    if (other == own || begin >= end) continue;
    // Of equal labels those of the earlier run come first.
    target +=
        (other < own ? upper_bound(from.labels, begin, end, label) : lower_bound(from.labels, begin, end, label)) -
        begin;
  }
  to.labels[target] = label;
  to.rows[target] = from.rows[place];
}

}  // namespace

Status fill(const LabelOrder& order, const OrderedLabels& labels, int64_t rows, void* workspace, Stream stream) {
  int64_t* const scratch = static_cast<int64_t*>(workspace) + 2 * rows;
  LabelOrder from = order, to = {scratch, scratch + rows};
  const auto swap = [&from, &to] {
    const LabelOrder other = from;
    from = to;
    to = other;
  };
  const int64_t tile = rows > kFewRows ? kRankedTile : kFewRows;
  for (int64_t run = tile; run < rows; run *= kWays) swap();  // so that the last merge ends in `order`
  Status status = launch(rank_rows_per_block, ceil_div(rows, kRankedByBlock), 1, kBlock, stream, labels, rows, from);
  for (int64_t run = tile; run < rows && status == 0; run *= kWays) {
    status = launch(merge_row_per_thread, ceil_div(rows, kBlock), 1, kBlock, stream, from, rows, run, to);
    swap();
  }
  return status;
}

}  // namespace cuda
}  // namespace lsoftmax

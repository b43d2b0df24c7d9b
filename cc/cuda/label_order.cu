#include "cuda/label_order.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

__global__ void __launch_bounds__(kBlock)
    rank_rows_per_block(Labels labels, int64_t rows, int64_t classes, LabelOrder ranked) {
  rank_rows(labels, rows, classes, blockIdx.x, ranked);
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

Status fill(const LabelOrder& order, const Labels& labels, int64_t rows, int64_t classes, void* workspace,
            Stream stream) {
  int64_t* const scratch = static_cast<int64_t*>(workspace) + 2 * rows;
  LabelOrder from = order, to = {scratch, scratch + rows};
  const auto swap = [&from, &to] {
    const LabelOrder other = from;
    from = to;
    to = other;
  };
  for (int64_t run = kRankTile; run < rows; run *= 2) swap();  // so that the last merge ends in `order`
  Status status =
      launch(rank_rows_per_block, ceil_div(rows, kRankedByBlock), 1, kBlock, stream, labels, rows, classes, from);
  for (int64_t run = kRankTile; run < rows && status == 0; run *= 2) {
    status = launch(merge_row_per_thread, ceil_div(rows, kBlock), 1, kBlock, stream, from, rows, run, to);
    swap();
  }
  return status;
}

}  // namespace cuda
}  // namespace lsoftmax

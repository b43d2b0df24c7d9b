// Every kernel over a whole batch, for callers that have threads: KERNEL_of_batch(args, over), or
// run_on_batch<Kernel::KERNEL>(args, over).
//
// over(total, cost, work) calls work(begin, end) for ranges that together are [0, total), at the same time or not. One
// index costs about `cost` cycles, and threads_for() tells how many threads that is worth.
#ifndef LSOFTMAX_CORE_BATCH_H_
#define LSOFTMAX_CORE_BATCH_H_

#include <algorithm>

#include "core/columns.h"
#include "core/groups.h"
#include "core/loss.h"
#include "core/rows.h"

namespace lsoftmax {

// Cycles, roughly: one entry of a strided column, one of a row, one target logit, and one logit from its product to its
// gradient.
constexpr int64_t kColumnCost = 8;
constexpr int64_t kEntryCost = 3;
constexpr int64_t kTargetCost = 200;
constexpr int64_t kLogitCost = 4;

// Work of fewer cycles is not worth waking another thread for.
constexpr int64_t kThreadCost = 400000;

inline int64_t threads_for(int64_t total, int64_t cost, int64_t most) {
  return std::max<int64_t>(1, std::min({most, total, total * cost / kThreadCost + 1}));
}

// A kernel over rows, each of `cost` cycles.
template <typename T, typename Over>
void over_rows(const Arguments<T>& args, const Over& over, int64_t cost,
               void (*kernel)(const Arguments<T>&, int64_t begin, int64_t end)) {
  over(args.rows, cost, [&args, kernel](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

template <typename T, typename Over>
void geometry_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kColumnCost * args.depth, row_kernels<T>().geometry);
}

template <typename T, typename Over>
void logits_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kTargetCost, row_kernels<T>().logits);
}

template <typename T, typename Over>
void logits_grad_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kTargetCost, row_kernels<T>().logits_grad);
}

template <typename T, typename Over>
void angles_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kTargetCost, row_kernels<T>().angles);
}

template <typename T, typename Over>
void features_grad_of_batch(const Arguments<T>& args, const Over& over) {
  const int64_t entry = args.target_weights != nullptr ? kEntryCost : kColumnCost;
  const int64_t radial = args.margin.normalize_features ? kEntryCost : 0;
  over_rows(args, over, (entry + radial) * args.depth, row_kernels<T>().features_grad);
}

// A kernel over classes whose `passes` read every weight: ranges begin at multiples of kColumnBlock.
template <typename T, typename Over, typename Work>
void over_columns(const Arguments<T>& args, const Over& over, int64_t passes, const Work& work) {
  const int64_t blocks = (args.classes + kColumnBlock - 1) / kColumnBlock;
  over(blocks, passes * kEntryCost * args.depth * kColumnBlock,
       [&](int64_t begin, int64_t end) { work(begin * kColumnBlock, std::min(end * kColumnBlock, args.classes)); });
}

// A kernel over ranges of features, in whole tiles of them.
template <typename T, typename Over, typename Work>
void over_features(const Arguments<T>& args, const Over& over, int64_t cost, const Work& work) {
  const int64_t tiles = (args.depth + kTile - 1) / kTile;
  over(tiles, cost * kTile,
       [&](int64_t begin, int64_t end) { work(begin * kTile, std::min(end * kTile, args.depth)); });
}

template <typename T, typename Over>
void weights_grad_of_batch(const Arguments<T>& args, const Over& over) {
  const RowGrouping grouping(args);
  const Groups groups = grouping.groups();
  if (args.margin.normalize_weights) {
    // A block's own labels are completed while its columns are at hand.
    return over_columns(args, over, 2, [&](int64_t begin, int64_t end) {
      for (int64_t first = begin; first < end; first += kColumnBlock) {
        const int64_t last = std::min(first + kColumnBlock, end);
        column_kernels<T>().take_off_radial(args, first, last);
        row_kernels<T>().weights_grad(args, groups.of(first, last), 0, args.depth);
      }
    });
  }
  if (args.class_major) {
    const int64_t rows_of_class = args.rows / std::max<int64_t>(1, groups.count) + 1;
    return over(groups.count, kEntryCost * args.depth * rows_of_class, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) row_kernels<T>().weights_grad(args, groups.at(g), 0, args.depth);
    });
  }
  over_features(args, over, kColumnCost * args.rows,
                [&](int64_t begin, int64_t end) { row_kernels<T>().weights_grad(args, groups, begin, end); });
}

template <typename T, typename Over>
void class_factors_of_batch(const Arguments<T>& args, const Over& over) {
  over_columns(args, over, 1, [&](int64_t begin, int64_t end) { column_kernels<T>().class_factors(args, begin, end); });
}

template <typename T, typename Over>
void loss_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kTargetCost + kLogitCost * args.classes, loss_kernels<T>().loss);
}

template <typename T, typename Over>
void sums_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kLogitCost * args.classes, loss_kernels<T>().sums);
}

template <typename T, typename Over>
void finish_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kTargetCost, loss_kernels<T>().finish);
}

template <typename T, typename Over>
void products_grad_of_batch(const Arguments<T>& args, const Over& over) {
  over_rows(args, over, kLogitCost * args.classes, loss_kernels<T>().products_grad);
}

template <typename T, typename Over>
void bias_grad_of_batch(const Arguments<T>& args, const Over& over) {
  over(args.classes, args.rows, [&](int64_t begin, int64_t end) { loss_kernels<T>().bias_grad(args, begin, end); });
}

// Geometry and loss of a row one after the other, while its thread has it at hand.
template <typename T, typename Over>
void geometry_and_loss_of_batch(const Arguments<T>& args, const Over& over) {
  over(args.rows, kColumnCost * args.depth + kTargetCost + kLogitCost * args.classes, [&](int64_t begin, int64_t end) {
    row_kernels<T>().geometry(args, begin, end);
    loss_kernels<T>().loss(args, begin, end);
  });
}

template <typename T, typename Over>
void gradients_of_batch(const Arguments<T>& args, const Over& over) {
  features_grad_of_batch(args, over);
  weights_grad_of_batch(args, over);
  if (args.bias_grad != nullptr) bias_grad_of_batch(args, over);
}

template <Kernel kernel, typename T, typename Over>
void run_on_batch(const Arguments<T>& args, const Over& over) {
#define LSOFTMAX_RUN(KERNEL) \
  if constexpr (kernel == Kernel::KERNEL) KERNEL##_of_batch(args, over);
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_RUN)
#undef LSOFTMAX_RUN
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_BATCH_H_

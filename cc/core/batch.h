// Kernels over a whole batch, for callers that have threads of their own.
//
// over(total, cost, work) calls work(begin, end) for ranges that together are [0, total), at the same time or not. One index
// costs about `cost` cycles; less than kThreadCost in all is not worth waking another thread for.
#ifndef LSOFTMAX_CORE_BATCH_H_
#define LSOFTMAX_CORE_BATCH_H_

#include "core/groups.h"
#include "core/loss.h"
#include "core/rows.h"

namespace lsoftmax {

// Geometry and loss of a row one after the other.
template <typename T, typename Over>
void loss_of_batch(const Arguments<T>& args, const Over& over) {
  over(args.rows, kColumnCost * args.depth + kTargetCost + kLogitCost * args.classes, [&](int64_t begin, int64_t end) {
    row_kernels<T>().geometry(args, begin, end);
    loss_kernels<T>().loss(args, begin, end);
  });
}

template <typename T, typename Over>
void features_grad_of_batch(const Arguments<T>& args, const Over& over) {
  const int64_t entry = args.target_weights != nullptr ? kEntryCost : kColumnCost;
  over(args.rows, entry * args.depth,
       [&](int64_t begin, int64_t end) { row_kernels<T>().features_grad(args, begin, end); });
}

template <typename T, typename Over>
void weights_grad_of_batch(const Arguments<T>& args, const Over& over) {
  const RowGrouping grouping(args.labels, args.rows);
  const Groups groups = grouping.groups();
  over(args.depth, kColumnCost * args.rows,
       [&](int64_t begin, int64_t end) { row_kernels<T>().weights_grad(args, groups, begin, end); });
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_BATCH_H_

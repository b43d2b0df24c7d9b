// The rows of a batch in the order of their labels: what core/groups.h is to the CPU.
//
// A stable merge sort of our own, because the order must not vary from run to run, its memory is the caller's, and
// its few kernels run wherever the others do: tiles are sorted in shared memory, then merged in pairs.
#ifndef LSOFTMAX_CUDA_LABEL_ORDER_CUH_
#define LSOFTMAX_CUDA_LABEL_ORDER_CUH_

#include <stdint.h>

#include "core/arguments.h"
#include "core/inline.h"
#include "cuda/kernels.h"

namespace lsoftmax {
namespace cuda {

// In device memory: labels [rows] ascending, and the row that each came from, ascending among equals. A label that is
// -1 or out of range stands as -1, before all others.
struct LabelOrder {
  int64_t* labels;
  int64_t* rows;
};

int64_t label_order_workspace(int64_t rows);

// Launches what fills `order`, which lies in `workspace`.
Status label_order(const Labels& labels, int64_t rows, int64_t classes, void* workspace, LabelOrder* order,
                   Stream stream);

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

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LABEL_ORDER_CUH_

// The CPU kernels: each works on a range of rows (or of feature dimensions), so that the caller shards as it likes.
//
// However a batch is cut into ranges, each number is computed by the same operations in the same order:
// results are bit-identical for any number of threads. Sums run in double for every data type, over a
// fixed set of lanes.
#ifndef LSOFTMAX_CORE_ROWS_H_
#define LSOFTMAX_CORE_ROWS_H_

#include <stdint.h>

#include "core/arguments.h"
#include "core/groups.h"
#include "core/half.h"

namespace lsoftmax {

// Feature dimensions that kernels take together: two cache lines of floats.
constexpr int64_t kTile = 32;

template <typename T>
struct RowKernels {
  // Rows [begin, end): geometry, and target_weights if not null, from features, weights, labels, range. A row without a
  // target gets zeros, and so does one whose target is not among the classes at hand.
  void (*geometry)(const Arguments<T>&, int64_t begin, int64_t end);

  // Rows [begin, end): replaces the target entry of logits, from geometry, labels, lambda, margin.
  // Precondition: logits holds the dense layer's products x . w_c.
  void (*logits)(const Arguments<T>&, int64_t begin, int64_t end);

  // Rows [begin, end): the derivative of the above. In: products_grad = dL/d(margin logits). Out: geometry_grad, and
  // products_grad = dL/d(products), in place: the target entry's share has moved into geometry_grad and becomes 0.
  void (*logits_grad)(const Arguments<T>&, int64_t begin, int64_t end);

  // Rows [begin, end): cos_theta and segment, from geometry, labels, margin. A row without a target gets
  // NaN and -1.
  void (*angles)(const Arguments<T>&, int64_t begin, int64_t end);

  // Rows [begin, end): features_grad = loss_grad (features_grad + geometry_grad_s w_y + 2 geometry_grad_A x), without a
  // target at hand loss_grad features_grad; here and below with loss_grad times grad_unit. If the margin divides by the
  // features' norms, the part of the features_grad that came in along x is taken off first.
  void (*features_grad)(const Arguments<T>&, int64_t begin, int64_t end);

  // Feature dimensions [begin, end), of these groups: weights_grad[:, y] += sum over the rows of class y of
  // loss_grad (geometry_grad_s x + 2 geometry_grad_B w_y). One addition an entry, however often a class occurs.
  void (*weights_grad)(const Arguments<T>&, const Groups&, int64_t begin, int64_t end);
};

// The kernels for this machine, chosen once: the best variant that it runs, or the one that the environment
// variable LSOFTMAX_CPU names (baseline, avx2, avx512).
template <typename T>
const RowKernels<T>& row_kernels();

// The name of that variant.
const char* cpu_variant();

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_ROWS_H_

// The CPU kernels of the fused loss: softmax cross-entropy of the margin logits and, in the same pass over the N x C
// products, its gradient. As in rows.h each works on a range, and the ranges change no bit.
//
// The gradient comes apart in two: what belongs to the target's logit goes into the row's geometry_grad (rows.h takes
// it on to features and weights) and leaves a 0; all other entries are the derivatives in the products. Both are of the
// row's own loss: the upstream gradient, one number a row, is folded into N x D arrays later. Of float16 both are
// written in units of the row's grad_unit (grad_unit.h), which is an output of `loss` and `finish`.
#ifndef LSOFTMAX_CORE_LOSS_H_
#define LSOFTMAX_CORE_LOSS_H_

#include <stdint.h>

#include "core/arguments.h"
#include "core/half.h"

namespace lsoftmax {

template <typename T>
struct LossKernels {
  // Rows [begin, end), from products, bias or class_factors, labels, lambda, margin, terms, geometry: loss,
  // products_grad, geometry_grad, target_grad and predicted. A row without a target gets zeros, and its predicted
  // class.
  void (*loss)(const Arguments<T>&, int64_t begin, int64_t end);

  // The same in two passes, for products that exist a block of classes at a time.
  //
  // Rows [begin, end), from products, bias or class_factors, labels, range, margin, terms, geometry: takes these
  // classes into the row's sums, which begin as those of no class.
  void (*sums)(const Arguments<T>&, int64_t begin, int64_t end);
  // Rows [begin, end), from sums, geometry, bias (of all classes), labels, lambda, margin, terms, depth: loss,
  // normalizer, geometry_grad, target_grad and predicted.
  void (*finish)(const Arguments<T>&, int64_t begin, int64_t end);
  // Rows [begin, end), from products, bias or class_factors, labels, range, margin, terms, geometry, normalizer:
  // products_grad.
  void (*products_grad)(const Arguments<T>&, int64_t begin, int64_t end);

  // Classes [begin, end), from products_grad, target_grad, loss_grad, grad_unit, labels, range: bias_grad.
  void (*bias_grad)(const Arguments<T>&, int64_t begin, int64_t end);
};

// For this machine, as row_kernels() of rows.h.
template <typename T>
const LossKernels<T>& loss_kernels();

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_LOSS_H_

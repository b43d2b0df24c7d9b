// What every kernel of this library takes: pointers, sizes and the margin, said once for the CPU and for CUDA.
//
// Every pointer is dense and row-major, and lies in the memory of the device that runs the kernel. A kernel
// reads and writes only the arrays that its contract (rows.h) names; the others may be null.
#ifndef LSOFTMAX_CORE_ARGUMENTS_H_
#define LSOFTMAX_CORE_ARGUMENTS_H_

#include <stdint.h>

#include "core/half.h"
#include "core/margin.h"

namespace lsoftmax {

// Global class indices [N], 32 or 64 bits wide. -1 means "no target in this row".
struct Labels {
  const void* data = nullptr;
  bool wide = false;  // int64 where true, int32 where false
};

LSOFTMAX_INLINE int64_t label_of(const Labels& labels, int64_t row) {
  return labels.wide ? static_cast<const int64_t*>(labels.data)[row] : static_cast<const int32_t*>(labels.data)[row];
}

// Which of all classes are at hand: C of them, from global class index `first` on.
struct ClassRange {
  int64_t first = 0;
  int64_t count = 0;  // of all classes; 0: those at hand are all, or it is not told
};

// X(TYPE, NAME, SHAPE): every array, with N = rows, D = depth, C = classes. An array that may be none may be null, too.
#define LSOFTMAX_FOR_EACH_ARRAY(X)                                                                                  \
  X(const T*, features, "[N, D]")                                                                                   \
  X(const T*, weights, "[D, C > 0]") /* [C, D] if class_major, and so their gradient */                             \
  X(const T*, products, "[N, C]")    /* X W; may be the same array as products_grad */                              \
  X(T*, products_grad, "[N, C]")     /* the loss's derivative in them */                                            \
  X(T*, logits, "[N, C]")                                                                                           \
  X(Labels, labels, "[N]") /* each -1 or one of all classes */                                                      \
  X(const T*, bias, "[C] or none")                                                                                  \
  X(const double*, lam, "[]")               /* lambda >= 0 */                                                       \
  X(const double*, terms, "[7] or none")    /* Terms of margin.h; none: 0, 1, 0, 0, 1, 0, 0 */                      \
  X(Real<T>*, class_factors, "[C] or none") /* what logits are multiples of; none: 1, and of a row, too */          \
  X(double*, geometry, "[3, N]")            /* x . w_y, |x|^2, |w_y|^2 */                                           \
  X(double*, sums, "[5, N]")                /* of the classes so far: see softmax.h */                              \
  X(double*, normalizer, "[3, N]")          /* see softmax.h */                                                     \
  X(T*, loss, "[N]")                                                                                                \
  X(const T*, loss_grad, "[N] or none")   /* the upstream gradient of the loss; none: 1 */                          \
  X(double*, geometry_grad, "[3, N]")     /* the loss's derivative in the geometry, ... */                          \
  X(double*, target_grad, "[N]")          /* ... and in the target's logit */                                       \
  X(T*, target_weights, "[N, D] or none") /* w_y of each row, 0 without a target; none: they are in weights */      \
  X(float*, grad_unit, "[N] or none")     /* what a row's derivatives are multiples of: see grad_unit.h; none: 1 */ \
  X(T*, features_grad, "[N, D]")                                                                                    \
  X(T*, weights_grad, "[D, C]")                                                                                     \
  X(T*, bias_grad, "[C]")                                                                                           \
  X(int64_t*, label_order, "[2, N] or none") /* of CUDA kernels: see cuda/kernels.h */                              \
  X(int64_t*, predicted, "[N]")              /* the class of the largest plain logit */                             \
  X(double*, cos_theta, "[N]")                                                                                      \
  X(int32_t*, segment, "[N]")

template <typename T>
struct Arguments {
  int64_t rows = 0;          // N, samples
  int64_t depth = 0;         // D, features of a sample
  int64_t classes = 0;       // C
  ClassRange range;          // where those C are among all
  bool class_major = false;  // whether weights and weights_grad are [C, D], a row a class
  Margin margin;

#define LSOFTMAX_DECLARE(TYPE, NAME, SHAPE) TYPE NAME = {};
  LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_DECLARE)
#undef LSOFTMAX_DECLARE

  void* workspace = nullptr;  // of CUDA kernels, see kernels.h
};

// How far apart the entries of neighbouring features, and of neighbouring classes, lie in weights and their gradient.
template <typename T>
LSOFTMAX_INLINE int64_t feature_stride(const Arguments<T>& args) {
  return args.class_major ? 1 : args.classes;
}
template <typename T>
LSOFTMAX_INLINE int64_t class_stride(const Arguments<T>& args) {
  return args.class_major ? args.depth : 1;
}

// X(KERNEL): those of rows.h, loss.h and columns.h; geometry and loss in one; and in one the three gradients that
// complete those of the products: features_grad, weights_grad and, unless it is null, bias_grad.
#define LSOFTMAX_FOR_EACH_KERNEL(X) \
  X(geometry)                       \
  X(logits)                         \
  X(logits_grad)                    \
  X(class_factors)                  \
  X(angles)                         \
  X(features_grad)                  \
  X(weights_grad)                   \
  X(loss)                           \
  X(geometry_and_loss)              \
  X(sums)                           \
  X(finish)                         \
  X(products_grad)                  \
  X(bias_grad)                      \
  X(gradients)

enum class Kernel {
#define LSOFTMAX_NAME(KERNEL) KERNEL,
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_NAME)
#undef LSOFTMAX_NAME
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_ARGUMENTS_H_

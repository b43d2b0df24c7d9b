// What every kernel of this library takes: pointers, sizes and the margin, said once for the CPU and for CUDA.
//
// Every pointer is dense and row-major, and lies in the memory of the device that runs the kernel. A kernel
// reads and writes only the arrays that its contract (rows.h) names; the others may be null.
#ifndef LSOFTMAX_CORE_ARGUMENTS_H_
#define LSOFTMAX_CORE_ARGUMENTS_H_

#include <stdint.h>

#include "core/inline.h"

namespace lsoftmax {

// Class indices [N], 32 or 64 bits wide. -1 means "no target in this row".
struct Labels {
  const void* data = nullptr;
  bool wide = false;  // int64 where true, int32 where false
};

LSOFTMAX_INLINE int64_t label_of(const Labels& labels, int64_t row) {
  return labels.wide ? static_cast<const int64_t*>(labels.data)[row] : static_cast<const int32_t*>(labels.data)[row];
}

template <typename T>
struct Arguments {
  int64_t rows = 0;     // N, samples
  int64_t depth = 0;    // D, features of a sample
  int64_t classes = 0;  // C
  int margin = 1;       // m, 1 <= m <= 64

  const T* features = nullptr;     // [N, D]
  const T* weights = nullptr;      // [D, C]
  const T* bias = nullptr;         // [C], or null: none
  Labels labels;                   // [N], each -1 or in [0, C)
  const double* lambda = nullptr;  // [], >= 0

  double* geometry = nullptr;       // [3, N]: x . w_y, |x|^2, |w_y|^2
  double* geometry_grad = nullptr;  // [3, N]: the loss's derivative in each of them

  T* logits = nullptr;         // [N, C]
  T* logits_grad = nullptr;    // [N, C]
  T* features_grad = nullptr;  // [N, D]
  T* weights_grad = nullptr;   // [D, C]
  T* bias_grad = nullptr;      // [C]

  // Of the fused loss. Where only the classes first_class .. first_class + C - 1 of more are at hand, labels count from
  // the first class of all.
  int64_t first_class = 0;
  const T* products = nullptr;    // [N, C]: X W; may be the same array as logits_grad
  T* target_weights = nullptr;    // [N, D]: w_y of each row, 0 without a target; or null: read them from weights
  T* loss = nullptr;              // [N]
  const T* loss_grad = nullptr;   // [N]: what comes down to the loss; or null: 1
  double* target_grad = nullptr;  // [N]: the loss's derivative in the target's logit
  float* grad_unit = nullptr;     // [N]: what a row's derivatives are multiples of, see grad_unit.h; or null: 1
  double* sums = nullptr;         // [4, N], of the classes so far: see softmax.h
  double* normalizer = nullptr;   // [2, N]: see softmax.h
  int64_t* predicted = nullptr;   // [N]: the class of the largest plain logit

  double* cos_theta = nullptr;  // [N]
  int32_t* segment = nullptr;   // [N]
};

}  // namespace lsoftmax

// X(KERNEL) for each kernel of rows.h and loss.h.
#define LSOFTMAX_FOR_EACH_KERNEL(X) \
  X(geometry)                       \
  X(logits)                         \
  X(logits_grad)                    \
  X(angles)                         \
  X(features_grad)                  \
  X(weights_grad)                   \
  X(loss)                           \
  X(sums)                           \
  X(finish)                         \
  X(products_grad)                  \
  X(bias_grad)

// X(ARRAY) for each array of Arguments but labels and lambda, whose types are their own.
#define LSOFTMAX_FOR_EACH_ARRAY(X) \
  X(features)                      \
  X(weights)                       \
  X(bias)                          \
  X(geometry)                      \
  X(geometry_grad)                 \
  X(logits)                        \
  X(logits_grad)                   \
  X(features_grad)                 \
  X(weights_grad)                  \
  X(bias_grad)                     \
  X(products)                      \
  X(target_weights)                \
  X(loss)                          \
  X(loss_grad)                     \
  X(target_grad)                   \
  X(grad_unit)                     \
  X(sums)                          \
  X(normalizer)                    \
  X(predicted)                     \
  X(cos_theta)                     \
  X(segment)

#endif  // LSOFTMAX_CORE_ARGUMENTS_H_

// The CPU kernel that tells which classes matter to the gradients that come through the products:
//
//   class j matters   <=>   |P_ij| > limit_i f_j in some row i, or it cannot be told: a NaN
//
// with P = products_grad and f = factors. Where the limits are below the rounding of a row's gradients
// (lsoftmax_op/filtering.py has them), the other classes can be left out of both products with P.
#ifndef LSOFTMAX_CORE_FILTER_H_
#define LSOFTMAX_CORE_FILTER_H_

#include <stdint.h>

#include "core/half.h"

namespace lsoftmax {

template <typename T>
struct FilterArguments {
  int64_t rows = 0;                  // N
  int64_t classes = 0;               // C
  const T* products_grad = nullptr;  // [N, C]
  const Real<T>* factors = nullptr;  // [C], or null: 1
  const Real<T>* limits = nullptr;   // [N]
};

template <typename T>
struct FilterKernels {
  // Classes [begin, end): matters[c - begin] = 1 for those that matter, else 0; returns how many they are.
  int64_t (*mark)(const FilterArguments<T>&, int64_t begin, int64_t end, uint8_t* matters);
};

// For this machine, as row_kernels() of rows.h.
template <typename T>
const FilterKernels<T>& filter_kernels();

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_FILTER_H_

// The CPU kernels that go over all of the weights, class by class, for margins that divide by their norms. As in rows.h
// each works on a range, and the ranges change no bit.
//
//   class_factors[c]      1 / |w_c|, 0 of a zero column
//   weights_grad[:, c] -= w_c (w_c . weights_grad[:, c]) / |w_c|^2
//
// with rows for columns, w_c = weights[c, :], if they are class-major. The second is what is left of a gradient that
// came through logits of p / |w_c|: its part along w_c changes nothing but the norm. Sums run in double, eight features
// at a time, in their order; or, class-major, over the lanes of lanes.h.
#ifndef LSOFTMAX_CORE_COLUMNS_H_
#define LSOFTMAX_CORE_COLUMNS_H_

#include <stdint.h>

#include "core/arguments.h"
#include "core/half.h"

namespace lsoftmax {

// So few classes that both matrices' entries stay in the cache from one pass to the next.
constexpr int64_t kColumnBlock = 64;

template <typename T>
struct ColumnKernels {
  // Classes [begin, end), from weights: class_factors.
  void (*class_factors)(const Arguments<T>&, int64_t begin, int64_t end);
  // Classes [begin, end), from weights: weights_grad, in place.
  void (*take_off_radial)(const Arguments<T>&, int64_t begin, int64_t end);
};

// For this machine, as row_kernels() of rows.h.
template <typename T>
const ColumnKernels<T>& column_kernels();

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_COLUMNS_H_

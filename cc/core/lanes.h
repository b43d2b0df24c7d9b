// Sums over the entries of a row that lies in one piece, in double, over a fixed set of lanes: for the files that are
// compiled once for every CPU variant.
#ifndef LSOFTMAX_CORE_LANES_H_
#define LSOFTMAX_CORE_LANES_H_

#include <stdint.h>

#include "core/half.h"

namespace lsoftmax {

constexpr int64_t kLanes = 8;  // partial sums, kept apart for the vector unit

LSOFTMAX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

LSOFTMAX_INLINE double total(const double* lanes) {
  double sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// |v|^2
template <typename T>
LSOFTMAX_INLINE double norm_sq_of(const T* v, int64_t size) {
  double lanes[kLanes] = {};
  for (int64_t first = 0; first < size; first += kLanes) {
    for (int64_t l = 0; l < smaller(kLanes, size - first); ++l) {
      const double vl = widen(v[first + l]);
      lanes[l] += vl * vl;
    }
  }
  return total(lanes);
}

// v . g / |v|^2, 0 of a row of zeros: v times it is the part of the gradient g along v.
template <typename T>
LSOFTMAX_INLINE double part_along(const T* v, const T* g, int64_t size) {
  double dot[kLanes] = {}, norm_sq[kLanes] = {};
  for (int64_t first = 0; first < size; first += kLanes) {
    for (int64_t l = 0; l < smaller(kLanes, size - first); ++l) {
      const double vl = widen(v[first + l]);
      dot[l] += vl * widen(g[first + l]);
      norm_sq[l] += vl * vl;
    }
  }
  return total(norm_sq) == 0 ? 0 : total(dot) / total(norm_sq);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_LANES_H_

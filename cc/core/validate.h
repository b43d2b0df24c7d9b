// Checks of values, not shapes: what only the data can tell. Each answers where the first offence is.
#ifndef LSOFTMAX_CORE_VALIDATE_H_
#define LSOFTMAX_CORE_VALIDATE_H_

#include <stdint.h>

#include "core/arguments.h"

namespace lsoftmax {

// The first row whose label is neither -1 nor in [0, classes), or -1 where all are good.
inline int64_t first_bad_label(const Labels& labels, int64_t rows, int64_t classes) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t label = label_of(labels, i);
    if (label < -1 || label >= classes) return i;
  }
  return -1;
}

// False for NaN, too.
inline bool is_good_lambda(double lambda) { return lambda >= 0; }

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_VALIDATE_H_

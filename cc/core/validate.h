// Checks of values, not shapes: what only the data can tell; and what is said of it.
#ifndef LSOFTMAX_CORE_VALIDATE_H_
#define LSOFTMAX_CORE_VALIDATE_H_

#include <stdint.h>
#include <stdio.h>

#include <string>

#include "core/arguments.h"

namespace lsoftmax {

LSOFTMAX_INLINE bool is_good_label(int64_t label, int64_t classes) { return -1 <= label && label < classes; }

// False for NaN, too.
LSOFTMAX_INLINE bool is_good_lambda(double lambda) { return lambda >= 0; }

// The first row whose label is neither -1 nor in [0, classes), or -1 where all are good.
inline int64_t first_bad_label(const Labels& labels, int64_t rows, int64_t classes) {
  for (int64_t i = 0; i < rows; ++i) {
    if (!is_good_label(label_of(labels, i), classes)) return i;
  }
  return -1;
}

inline std::string about_bad_label(const Labels& labels, int64_t row, int64_t classes) {
  return "labels: expected values in [0, " + std::to_string(classes) +
         "), or -1 for a row without a target, got labels[" + std::to_string(row) +
         "] = " + std::to_string(label_of(labels, row));
}

inline std::string about_bad_lambda(double lambda) {
  char number[32];
  snprintf(number, sizeof number, "%g", lambda);
  return std::string("lam: expected a number >= 0, got ") + number;
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_VALIDATE_H_

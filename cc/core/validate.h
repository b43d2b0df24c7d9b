// Checks of values, not shapes: what only the data can tell; and what is said of it.
#ifndef LSOFTMAX_CORE_VALIDATE_H_
#define LSOFTMAX_CORE_VALIDATE_H_

#include <stdint.h>
#include <stdio.h>

#include <string>
#include <vector>

#include "core/arguments.h"

namespace lsoftmax {

LSOFTMAX_INLINE bool is_good_label(int64_t label, int64_t classes) { return -1 <= label && label < classes; }

// False for NaN, too.
LSOFTMAX_INLINE bool is_good_lambda(double lambda) { return lambda >= 0; }

// Whether `count` columns from `first` on are among `width`.
LSOFTMAX_INLINE bool is_good_first(int64_t first, int64_t count, int64_t width) {
  return 0 <= first && first <= width - count;
}

// The first row whose label is neither -1 nor in [0, classes), or -1 where all are good.
inline int64_t first_bad_label(const Labels& labels, int64_t rows, int64_t classes) {
  for (int64_t i = 0; i < rows; ++i) {
    if (!is_good_label(label_of(labels, i), classes)) return i;
  }
  return -1;
}

// Labels to be checked and then used: what they come from may be an array, or a variable's buffer, that another thread writes
// to in between.
inline std::vector<int64_t> copy_of(const Labels& labels, int64_t rows) {
  std::vector<int64_t> copy(rows);
  for (int64_t i = 0; i < rows; ++i) copy[i] = label_of(labels, i);
  return copy;
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

inline std::string about_bad_first(const char* argument, int64_t first, int64_t count, int64_t width) {
  return std::string(argument) + ": expected a column from 0 to " + std::to_string(width - count) + " for a block of " +
         std::to_string(count) + ", got " + std::to_string(first);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_VALIDATE_H_

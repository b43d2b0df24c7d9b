// Checks of values, not shapes: what only the data can tell; and what is said of it.
#ifndef LSOFTMAX_CORE_VALIDATE_H_
#define LSOFTMAX_CORE_VALIDATE_H_

#include <stdint.h>
#include <stdio.h>

#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/margin.h"
#include "core/target.h"

namespace lsoftmax {

LSOFTMAX_INLINE bool is_good_margin(int64_t margin) { return 1 <= margin && margin <= kMaxMargin; }

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

inline std::string about_bad_margin(int64_t margin) {
  return "margin: expected an integer from 1 to " + std::to_string(kMaxMargin) + ", got " + std::to_string(margin);
}

// What is wrong with the place of `classes` classes among all; empty if nothing is.
inline std::string judge(const ClassRange& range, int64_t classes) {
  if (range.first == 0 && range.count == 0) return "";
  if (range.count >= 0 && is_good_first(range.first, classes, range.count)) return "";
  return "first_class, num_classes: expected first_class >= 0 and first_class + " + std::to_string(classes) +
         " <= num_classes for weights of " + std::to_string(classes) + " classes, got " + std::to_string(range.first) +
         " and " + std::to_string(range.count);
}

// What is wrong with a margin; empty if nothing is.
inline std::string judge(const Margin& margin) {
  if (!is_good_margin(margin.m)) return about_bad_margin(margin.m);
  if (!margin.linear || margin.m == 1) return "";
  return "margin: expected 1 for a linear continuation, got " + std::to_string(margin.m);
}

// An array that may be none: whether the op or call has such an input, and whether it is there.
struct Given {
  bool is_input, is_there;
};

// What is wrong with the arrays that a margin wants, or refuses; empty if nothing is. That a scale other than 1 wants
// class_factors is for the caller to know: only a device may see it.
inline std::string judge(const Margin& margin, const Given& terms, const Given& class_factors, bool has_bias) {
  const std::string want_terms = "terms: expected shape [7] where ", want_factors = "class_factors: expected shape [C]";
  const bool normalizes = margin.normalize_features || margin.normalize_weights;
  if (class_factors.is_there && has_bias) return "bias: expected none where there are class_factors, got one";
  if (class_factors.is_there && !terms.is_there) return want_terms + "there are class_factors, got none";
  if (terms.is_input && !terms.is_there && (normalizes || margin.linear)) {
    return want_terms + "a margin normalises or has a linear continuation, got none";
  }
  if (class_factors.is_input && !class_factors.is_there && normalizes) {
    return want_factors + " where a margin normalises, got none";
  }
  return "";
}

inline std::string about_bad_first(const char* argument, int64_t first, int64_t count, int64_t width) {
  return std::string(argument) + ": expected a column from 0 to " + std::to_string(width - count) + " for a block of " +
         std::to_string(count) + ", got " + std::to_string(first);
}

// The first of the columns that is not in [0, classes), or -1 where all are.
inline int64_t first_bad_column(const std::vector<int64_t>& columns, int64_t classes) {
  for (size_t k = 0; k < columns.size(); ++k) {
    if (columns[k] < 0 || columns[k] >= classes) return static_cast<int64_t>(k);
  }
  return -1;
}

inline std::string about_bad_column(int64_t k, int64_t column, int64_t classes) {
  return "columns: expected values in [0, " + std::to_string(classes) + "), got columns[" + std::to_string(k) +
         "] = " + std::to_string(column);
}

inline std::string about_columns_on_gpu(int64_t count) {
  return "columns: expected [0] and all columns on a GPU, got " + std::to_string(count) + " of them";
}

// Arguments whose values the host judges before a kernel runs, and its own copies of them: an array, or a variable's
// buffer, may change between the check and the use.
template <typename T>
struct JudgedArguments : Arguments<T> {
  std::vector<int64_t> own_labels;
  double own_lam = 0;

  // What is wrong with the labels, each -1 or one of all classes, and with lambda, if they are there; empty if nothing
  // is.
  std::string judge() {
    const std::string wrong = this->labels.data == nullptr ? "" : judge_labels();
    return wrong.empty() && this->lam != nullptr ? judge_lam() : wrong;
  }
  std::string judge_labels() {
    own_labels.resize(this->rows);
    for (int64_t i = 0; i < this->rows; ++i) own_labels[i] = label_of(this->labels, i);
    this->labels = {own_labels.data(), true};
    const int64_t classes = all_classes(*this), row = first_bad_label(this->labels, this->rows, classes);
    return row < 0 ? "" : about_bad_label(this->labels, row, classes);
  }
  std::string judge_lam() {
    own_lam = *this->lam;
    this->lam = &own_lam;
    return is_good_lambda(own_lam) ? "" : about_bad_lambda(own_lam);
  }
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_VALIDATE_H_

#include "core/groups.h"

#include <algorithm>

#include "core/target.h"

namespace lsoftmax {

Groups Groups::of(int64_t first, int64_t last) const {
  const int64_t* const begin = std::lower_bound(classes, classes + count, first);
  const int64_t* const end = std::lower_bound(begin, classes + count, last);
  return {end - begin, begin, starts + (begin - classes), order};
}

RowGrouping::RowGrouping(const Labels& labels, int64_t rows, const ClassRange& range, int64_t classes) {
  const auto column = [&](int64_t row) { return column_of(label_of(labels, row), range.first, classes); };
  order_.reserve(rows);
  for (int64_t i = 0; i < rows; ++i) {
    if (column(i) >= 0) order_.push_back(i);
  }
  std::stable_sort(order_.begin(), order_.end(), [&](int64_t i, int64_t j) { return column(i) < column(j); });
  for (size_t n = 0; n < order_.size(); ++n) {
    const int64_t own = column(order_[n]);
    if (classes_.empty() || classes_.back() != own) {
      classes_.push_back(own);
      starts_.push_back(static_cast<int64_t>(n));
    }
  }
  starts_.push_back(static_cast<int64_t>(order_.size()));
}

}  // namespace lsoftmax

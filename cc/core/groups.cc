#include "core/groups.h"

#include <algorithm>

namespace lsoftmax {

Groups Groups::of(int64_t first, int64_t last) const {
  const int64_t* const begin = std::lower_bound(classes, classes + count, first);
  const int64_t* const end = std::lower_bound(begin, classes + count, last);
  return {end - begin, begin, starts + (begin - classes), order};
}

RowGrouping::RowGrouping(const Labels& labels, int64_t rows) {
  order_.reserve(rows);
  for (int64_t i = 0; i < rows; ++i) {
    if (label_of(labels, i) >= 0) order_.push_back(i);
  }
  std::stable_sort(order_.begin(), order_.end(),
                   [&labels](int64_t i, int64_t j) { return label_of(labels, i) < label_of(labels, j); });
  for (size_t n = 0; n < order_.size(); ++n) {
    const int64_t label = label_of(labels, order_[n]);
    if (classes_.empty() || classes_.back() != label) {
      classes_.push_back(label);
      starts_.push_back(static_cast<int64_t>(n));
    }
  }
  starts_.push_back(static_cast<int64_t>(order_.size()));
}

}  // namespace lsoftmax

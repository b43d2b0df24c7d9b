// The rows of a batch, gathered by their class: what the weight gradient adds up, class by class.
#ifndef LSOFTMAX_CORE_GROUPS_H_
#define LSOFTMAX_CORE_GROUPS_H_

#include <stdint.h>

#include <vector>

#include "core/arguments.h"

namespace lsoftmax {

// Group g holds the rows order[starts[g]] .. order[starts[g + 1] - 1], all of class classes[g], in ascending
// order. Rows without a target at hand are in no group.
struct Groups {
  int64_t count;
  const int64_t* classes;  // [count], ascending: their columns among those at hand
  const int64_t* starts;   // [count + 1]
  const int64_t* order;    // [rows with a target at hand]

  // Those of the classes [first, last).
  Groups of(int64_t first, int64_t last) const;
  // The g-th alone.
  Groups at(int64_t g) const { return {1, classes + g, starts + g, order}; }
};

// Groups the rows of a batch on the host: O(N log N) time, O(N) memory.
class RowGrouping {
 public:
  template <typename T>
  explicit RowGrouping(const Arguments<T>& args) : RowGrouping(args.labels, args.rows, args.range, args.classes) {}
  RowGrouping(const Labels& labels, int64_t rows, const ClassRange& range, int64_t classes);

  // Valid as long as this object lives.
  Groups groups() const {
    return {static_cast<int64_t>(classes_.size()), classes_.data(), starts_.data(), order_.data()};
  }

 private:
  std::vector<int64_t> classes_, starts_, order_;
};

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_GROUPS_H_

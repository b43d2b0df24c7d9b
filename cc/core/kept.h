// The classes that matter in a whole batch (filter.h), and columns of matrices, or rows of class-major ones: for
// callers that have threads, as in batch.h.
//
// What is found depends neither on ranges nor on threads: a search that ends early ends with the same answer.
#ifndef LSOFTMAX_CORE_KEPT_H_
#define LSOFTMAX_CORE_KEPT_H_

#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "core/filter.h"

namespace lsoftmax {

// The first look is at groups of classes, spread over all of them, each a cache line of a row: at one of so many
// groups, up to so many of them; fewer than so many would tell nothing.
constexpr int64_t kGroupBytes = 64, kGroupsPerSample = 16, kMostGroups = 64, kLeastGroups = 8;

// Classes that a thread marks before it looks how many the others have found.
constexpr int64_t kMarkedAtOnce = 4096;

// Whether the sample lets expect `most` classes that matter, or up to twice as many.
template <typename T>
bool may_be_few(const FilterArguments<T>& args, int64_t most) {
  constexpr int64_t kWidth = kGroupBytes / sizeof(T);
  const int64_t groups = std::min(kMostGroups, args.classes / (kWidth * kGroupsPerSample));
  if (most >= args.classes || groups < kLeastGroups) return true;
  const double enough = 2.0 * most / args.classes * (groups * kWidth);
  uint8_t matters[kWidth];
  int64_t count = 0;
  for (int64_t n = 0; n < groups && count <= enough; ++n) {
    const int64_t first = args.classes / groups * n;
    count += filter_kernels<T>().mark(args, first, first + kWidth, matters);
  }
  return count <= enough;
}

// The classes that matter, ascending, and class 0 where none does; empty if they are more than `most`.
template <typename T, typename Over>
std::vector<int64_t> kept_classes(const FilterArguments<T>& args, int64_t most, const Over& over) {
  std::vector<int64_t> kept;
  if (args.classes == 0 || !may_be_few(args, most)) return kept;
  std::vector<uint8_t> matters(args.classes);
  std::atomic<int64_t> count{0};
  over(args.classes, std::max<int64_t>(1, args.rows), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end && count <= most; first += kMarkedAtOnce) {
      count += filter_kernels<T>().mark(args, first, std::min(first + kMarkedAtOnce, end), &matters[first]);
    }
  });
  if (count > most) return kept;
  kept.reserve(count + 1);
  for (int64_t c = 0; c < args.classes; ++c) {
    if (matters[c] != 0) kept.push_back(c);
  }
  if (kept.empty() && most > 0) kept.push_back(0);
  return kept;
}

// Cycles, roughly, of one entry that is taken from, or put into, a row.
constexpr int64_t kTakenCost = 8;

// taken[d, k] = matrix[d, columns[k]]
template <typename T, typename Over>
void take_columns(const T* matrix, int64_t depth, int64_t classes, const std::vector<int64_t>& columns, T* taken,
                  const Over& over) {
  const int64_t width = static_cast<int64_t>(columns.size());
  over(depth, kTakenCost * width, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      for (int64_t k = 0; k < width; ++k) taken[d * width + k] = matrix[d * classes + columns[k]];
    }
  });
}

// matrix[d, columns[k]] = block[d, k], and 0 in all other columns.
template <typename T, typename Over>
void spread_columns(const T* block, int64_t depth, int64_t classes, const std::vector<int64_t>& columns, T* matrix,
                    const Over& over) {
  const int64_t width = static_cast<int64_t>(columns.size());
  over(depth, classes + kTakenCost * width, [&](int64_t begin, int64_t end) {
    for (int64_t d = begin; d < end; ++d) {
      memset(static_cast<void*>(matrix + d * classes), 0, classes * sizeof(T));
      for (int64_t k = 0; k < width; ++k) matrix[d * classes + columns[k]] = block[d * width + k];
    }
  });
}

// taken[k, :] = matrix[rows[k], :]
template <typename T, typename Over>
void take_rows(const T* matrix, int64_t depth, const std::vector<int64_t>& rows, T* taken, const Over& over) {
  over(static_cast<int64_t>(rows.size()), depth, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) std::copy_n(matrix + rows[k] * depth, depth, taken + k * depth);
  });
}

// matrix[rows[k], :] = block[k, :], and 0 in all other rows.
template <typename T, typename Over>
void spread_rows(const T* block, int64_t depth, int64_t classes, const std::vector<int64_t>& rows, T* matrix,
                 const Over& over) {
  std::vector<const T*> sources(classes);  // of each class; null where it is in no row of the block
  for (size_t k = 0; k < rows.size(); ++k) sources[rows[k]] = block + k * depth;
  over(classes, depth, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      T* const row = matrix + c * depth;
      if (sources[c] != nullptr) {
        std::copy_n(sources[c], depth, row);
      } else {
        memset(static_cast<void*>(row), 0, depth * sizeof(T));
      }
    }
  });
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_KEPT_H_

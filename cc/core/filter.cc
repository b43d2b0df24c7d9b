// Compiled once for every CPU variant, as rows.cc is.
#include "core/filter.h"

#include <type_traits>

#include "core/inline.h"

namespace lsoftmax {
namespace {

constexpr int64_t kBlock = 1024;     // classes whose flags stay in the first-level cache
constexpr int64_t kRowsPerLook = 8;  // after so many: do all of them matter already?

// A flag as wide as what it is found in, so that both are vectors of one length.
template <typename T>
using Flag = std::conditional_t<sizeof(Real<T>) == sizeof(int64_t), int64_t, int32_t>;

// found[l] = 1 where row[l] is beyond limit factors[l], or cannot be compared.
template <typename T, bool kFactors>
LSOFTMAX_INLINE void mark_row(const T* row, const Real<T>* factors, Real<T> limit, int64_t width, Flag<T>* found) {
  for (int64_t l = 0; l < width; ++l) {
    const Real<T> entry = widen(row[l]), size = entry < 0 ? -entry : entry;
    const Real<T> most = kFactors ? limit * factors[l] : limit;
    found[l] = size <= most ? found[l] : 1;
  }
}

template <typename T>
LSOFTMAX_INLINE int64_t count_of(const Flag<T>* found, int64_t width) {
  int64_t count = 0;
  for (int64_t l = 0; l < width; ++l) count += found[l];
  return count;
}

template <typename T>
int64_t mark(const FilterArguments<T>& args, int64_t begin, int64_t end, uint8_t* matters) {
  int64_t count = 0;
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t width = end - first < kBlock ? end - first : kBlock;
    const bool has_factors = args.factors != nullptr;
    const Real<T>* const factors = has_factors ? args.factors + first : nullptr;
    alignas(64) Flag<T> found[kBlock] = {};
    int64_t of_block = 0;
    for (int64_t i = 0; i < args.rows && of_block < width; ++i) {
      const T* const row = args.products_grad + i * args.classes + first;
      has_factors ? mark_row<T, true>(row, factors, args.limits[i], width, found)
                  : mark_row<T, false>(row, factors, args.limits[i], width, found);
      if (i % kRowsPerLook == kRowsPerLook - 1 || i == args.rows - 1) of_block = count_of<T>(found, width);
    }
    for (int64_t l = 0; l < width; ++l) matters[first - begin + l] = static_cast<uint8_t>(found[l]);
    count += of_block;
  }
  return count;
}

}  // namespace

namespace LSOFTMAX_VARIANT {

template <typename T>
const FilterKernels<T>& filter_kernels() {
  static constexpr FilterKernels<T> kKernels = {mark<T>};
  return kKernels;
}

template const FilterKernels<float16>& filter_kernels<float16>();
template const FilterKernels<bfloat16>& filter_kernels<bfloat16>();
template const FilterKernels<float>& filter_kernels<float>();
template const FilterKernels<double>& filter_kernels<double>();

}  // namespace LSOFTMAX_VARIANT
}  // namespace lsoftmax

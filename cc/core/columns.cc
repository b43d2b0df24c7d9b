// Compiled once for every CPU variant, as rows.cc is.
#include "core/columns.h"

namespace lsoftmax {
namespace {

constexpr int64_t kWidest = 1024;       // classes whose sums are kept at hand
constexpr int64_t kNarrowest = 32;      // two cache lines of floats
constexpr int64_t kCache = 512 * 1024;  // bytes of both matrices that stay in the second-level cache from pass to pass

LSOFTMAX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename T>
void class_factors(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kWidest) {
    const int64_t width = smaller(kWidest, end - first);
    double norm_sq[kWidest] = {};
    for (int64_t d = 0; d < args.depth; ++d) {
      const T* const w = args.weights + d * args.classes + first;
      for (int64_t l = 0; l < width; ++l) {
        const double wl = widen(w[l]);
        norm_sq[l] += wl * wl;
      }
    }
    Real<T>* const factors = args.class_factors + first;
    for (int64_t l = 0; l < width; ++l) assign(factors[l], inverse_norm(norm_sq[l]));
  }
}

template <typename T>
void take_off_radial(const Arguments<T>& args, int64_t begin, int64_t end) {
  const int64_t fits = kCache / (2 * static_cast<int64_t>(sizeof(T)) * (args.depth + 1)) / kNarrowest * kNarrowest;
  const int64_t step = smaller(kWidest, fits < kNarrowest ? kNarrowest : fits);
  for (int64_t first = begin; first < end; first += step) {
    const int64_t width = smaller(step, end - first);
    double along[kWidest] = {}, norm_sq[kWidest] = {};
    for (int64_t d = 0; d < args.depth; ++d) {
      const T* const w = args.weights + d * args.classes + first;
      const T* const gradient = args.weights_grad + d * args.classes + first;
      for (int64_t l = 0; l < width; ++l) {
        const double wl = widen(w[l]);
        along[l] += wl * widen(gradient[l]);
        norm_sq[l] += wl * wl;
      }
    }
    for (int64_t l = 0; l < width; ++l) along[l] = norm_sq[l] == 0 ? 0 : along[l] / norm_sq[l];
    for (int64_t d = 0; d < args.depth; ++d) {
      const T* const __restrict w = args.weights + d * args.classes + first;
      T* const __restrict gradient = args.weights_grad + d * args.classes + first;
      for (int64_t l = 0; l < width; ++l) assign(gradient[l], widen(gradient[l]) - along[l] * widen(w[l]));
    }
  }
}

}  // namespace

namespace LSOFTMAX_VARIANT {

template <typename T>
const ColumnKernels<T>& column_kernels() {
  static constexpr ColumnKernels<T> kKernels = {class_factors<T>, take_off_radial<T>};
  return kKernels;
}

template const ColumnKernels<float16>& column_kernels<float16>();
template const ColumnKernels<bfloat16>& column_kernels<bfloat16>();
template const ColumnKernels<float>& column_kernels<float>();
template const ColumnKernels<double>& column_kernels<double>();

}  // namespace LSOFTMAX_VARIANT
}  // namespace lsoftmax

// Compiled once for every CPU variant, as rows.cc is.
#include "core/columns.h"

#include "core/lanes.h"

namespace lsoftmax {
namespace {

constexpr int64_t kWide = 1024;  // classes whose sums are kept at hand
constexpr int kRows = 8;         // of a matrix, side by side: each is a stream of its own from memory

// sums[0 .. width) += the products of `count` rows' entries, which begin `pitch` apart
template <int count, typename T>
LSOFTMAX_INLINE void add_rows(const T* a, const T* b, int64_t pitch, int64_t width, double* __restrict sums) {
  for (int64_t l = 0; l < width; ++l) {
    double sum = 0;
    for (int r = 0; r < count; ++r) sum += static_cast<double>(widen(a[r * pitch + l])) * widen(b[r * pitch + l]);
    sums[l] += sum;
  }
}

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// visit(rows, d) for each of the features: `rows` of them from d on, kRows or one.
template <typename Visit>
LSOFTMAX_INLINE void over_features(int64_t depth, const Visit& visit) {
  int64_t d = 0;
  for (; d + kRows <= depth; d += kRows) visit(Count<kRows>(), d);
  for (; d < depth; ++d) visit(Count<1>(), d);
}

template <typename T>
void class_factors(const Arguments<T>& args, int64_t begin, int64_t end) {
  if (args.class_major) {
    for (int64_t c = begin; c < end; ++c) {
      assign(args.class_factors[c], inverse_norm(norm_sq_of(args.weights + c * args.depth, args.depth)));
    }
    return;
  }
  for (int64_t first = begin; first < end; first += kWide) {
    const int64_t width = smaller(kWide, end - first), pitch = args.classes;
    double norm_sq[kWide] = {};
    over_features(args.depth, [&](auto rows, int64_t d) {
      const T* const w = args.weights + d * pitch + first;
      add_rows<rows.value>(w, w, pitch, width, norm_sq);
    });
    Real<T>* const factors = args.class_factors + first;
    for (int64_t l = 0; l < width; ++l) assign(factors[l], inverse_norm(norm_sq[l]));
  }
}

// gradient -= share w
template <typename T>
LSOFTMAX_INLINE void take_off(const T* __restrict w, Real<T> share, int64_t width, T* __restrict gradient) {
  for (int64_t l = 0; l < width; ++l) assign(gradient[l], widen(gradient[l]) - share * widen(w[l]));
}

template <typename T>
void take_off_radial(const Arguments<T>& args, int64_t begin, int64_t end) {
  if (args.class_major) {
    for (int64_t c = begin; c < end; ++c) {
      const T* const w = args.weights + c * args.depth;
      T* const gradient = args.weights_grad + c * args.depth;
      Real<T> share;
      assign(share, part_along(w, gradient, args.depth));
      take_off(w, share, args.depth, gradient);
    }
    return;
  }
  for (int64_t first = begin; first < end; first += kColumnBlock) {
    const int64_t width = smaller(kColumnBlock, end - first), pitch = args.classes;
    double along[kColumnBlock] = {}, norm_sq[kColumnBlock] = {};
    over_features(args.depth, [&](auto rows, int64_t d) {
      const T* const w = args.weights + d * pitch + first;
      add_rows<rows.value>(w, args.weights_grad + d * pitch + first, pitch, width, along);
      add_rows<rows.value>(w, w, pitch, width, norm_sq);
    });
    Real<T> share[kColumnBlock];  // rounded as the gradient is, of which it is a part
    for (int64_t l = 0; l < width; ++l) assign(share[l], norm_sq[l] == 0 ? 0 : along[l] / norm_sq[l]);
    for (int64_t d = 0; d < args.depth; ++d) {
      const T* const __restrict w = args.weights + d * pitch + first;
      T* const __restrict gradient = args.weights_grad + d * pitch + first;
      for (int64_t l = 0; l < width; ++l) assign(gradient[l], widen(gradient[l]) - share[l] * widen(w[l]));
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

// Compiled once for every CPU variant, as rows.cc is.
//
// A row goes through two passes: its sums, a block of classes at a time, each block's logits in the first-level cache
// between maximum and exponentials; and its gradient. Between the two the row itself waits in the second-level cache.
#include "core/loss.h"

#include "core/exponential.h"
#include "core/softmax.h"

namespace lsoftmax {
namespace {

constexpr int64_t kBlock = 1024;  // classes
constexpr int64_t kLanes = 32;    // kept apart for the vector unit
static_assert(kBlock % kLanes == 0, "a block is whole lanes");

// What logits are computed in.
template <typename T>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};
template <typename T>
using Real = typename RealOf<T>::type;

LSOFTMAX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// z[0 .. width) = products + bias; z is filled up to whole lanes with -inf. Returns the filled width.
template <typename T>
LSOFTMAX_INLINE int64_t load(const T* __restrict products, const T* __restrict bias, int64_t width,
                             Real<T>* __restrict z) {
  if (bias == nullptr) {
    for (int64_t l = 0; l < width; ++l) z[l] = widen(products[l]);
  } else {
    for (int64_t l = 0; l < width; ++l) z[l] = widen(products[l]) + widen(bias[l]);
  }
  const int64_t full = (width + kLanes - 1) / kLanes * kLanes;
  for (int64_t l = width; l < full; ++l) z[l] = -static_cast<Real<T>>(INFINITY);
  return full;
}

template <typename R>
LSOFTMAX_INLINE R largest(const R* z, int64_t full) {
  R lanes[kLanes];
  for (int64_t l = 0; l < kLanes; ++l) lanes[l] = z[l];
  for (int64_t c = kLanes; c < full; c += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = z[c + l] > lanes[l] ? z[c + l] : lanes[l];
  }
  R max = lanes[0];
  for (int64_t l = 1; l < kLanes; ++l) max = lanes[l] > max ? lanes[l] : max;
  return max;
}

// The sum of exp(z - max).
template <typename R>
LSOFTMAX_INLINE double sum_of_exponentials(const R* z, int64_t full, R max) {
  if (max == -static_cast<R>(INFINITY)) return 0;
  R lanes[kLanes] = {};
  for (int64_t c = 0; c < full; c += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += exponential(z[c + l] - max);
  }
  double sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// The first place of `value` among z, or 0.
template <typename R>
LSOFTMAX_INLINE int64_t place_of(const R* z, int64_t width, R value) {
  for (int64_t l = 0; l < width; ++l) {
    if (z[l] == value) return l;
  }
  return 0;
}

// `sums`, and the row's classes at hand.
template <typename T>
LSOFTMAX_INLINE Sums sum_row(const Arguments<T>& args, int64_t row, Sums sums) {
  const int64_t y = label_of(args.labels, row) - args.first_class;
  alignas(64) Real<T> z[kBlock];
  for (int64_t c = 0; c < args.classes; c += kBlock) {
    const int64_t width = smaller(kBlock, args.classes - c);
    const int64_t full = load(args.products + row * args.classes + c, args.bias ? args.bias + c : nullptr, width, z);
    Sums block;
    Real<T> max = largest(z, full);
    block.best = max;
    block.predicted = 0;
    if (block.best > sums.best) block.predicted = static_cast<double>(args.first_class + c + place_of(z, width, max));
    if (y >= c && y < c + width) {
      z[y - c] = -static_cast<Real<T>>(INFINITY);
      max = largest(z, full);
    }
    block.max = max;
    block.sum = sum_of_exponentials(z, full, max);
    sums = merge(sums, block);
  }
  return sums;
}

// logits_grad[row, :], with a 0 at the target.
template <typename T>
LSOFTMAX_INLINE void differentiate_row(const Arguments<T>& args, int64_t row, const Normalizer& normalizer) {
  T* const gradient = args.logits_grad + row * args.classes;
  const int64_t label = label_of(args.labels, row), y = label - args.first_class;
  if (label < 0) {
    for (int64_t c = 0; c < args.classes; ++c) assign(gradient[c], 0);
    return;
  }
  const T* const products = args.products + row * args.classes;
  const T* const bias = args.bias;
  const Real<T> max = static_cast<Real<T>>(normalizer.max), scale = static_cast<Real<T>>(normalizer.scale);
  // Each entry is read before it is written, should both arrays be the same.
  if (bias == nullptr) {
#pragma GCC ivdep
    for (int64_t c = 0; c < args.classes; ++c) {
      assign(gradient[c], exponential(widen(products[c]) - max) * scale);
    }
  } else {
#pragma GCC ivdep
    for (int64_t c = 0; c < args.classes; ++c) {
      assign(gradient[c], exponential(widen(products[c]) + widen(bias[c]) - max) * scale);
    }
  }
  if (0 <= y && y < args.classes) assign(gradient[y], 0);
}

// The bias of the row's target; `bias` is of all classes.
template <typename T>
LSOFTMAX_INLINE double target_bias(const Arguments<T>& args, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  return args.bias != nullptr && y >= 0 ? widen(args.bias[y]) : 0;
}

template <typename T>
void loss(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lambda);
  for (int64_t i = begin; i < end; ++i) {
    const Sums sums = sum_row(args, i, no_sums());
    differentiate_row(args, i, finish_row(args, alpha, i, target_bias(args, i), sums));
  }
}

template <typename T>
void sums(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) store(args, i, sum_row(args, i, sums_of(args, i)));
}

template <typename T>
void finish(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lambda);
  for (int64_t i = begin; i < end; ++i) {
    const Normalizer normalizer = finish_row(args, alpha, i, target_bias(args, i), sums_of(args, i));
    args.normalizer[i] = normalizer.max;
    args.normalizer[args.rows + i] = normalizer.scale;
  }
}

template <typename T>
void products_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    differentiate_row(args, i, {args.normalizer[i], args.normalizer[args.rows + i]});
  }
}

template <typename T>
void bias_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  alignas(64) double sum[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t width = smaller(kBlock, end - first);
    for (int64_t l = 0; l < width; ++l) sum[l] = 0;
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t y = label_of(args.labels, i) - args.first_class;
      const double grad = args.loss_grad ? widen(args.loss_grad[i]) : 1;
      const T* const row = args.logits_grad + i * args.classes + first;
      for (int64_t l = 0; l < width; ++l) sum[l] += grad * widen(row[l]);
      if (label_of(args.labels, i) >= 0 && first <= y && y < first + width)
        sum[y - first] += grad * args.target_grad[i];
    }
    for (int64_t l = 0; l < width; ++l) assign(args.bias_grad[first + l], sum[l]);
  }
}

}  // namespace

namespace LSOFTMAX_VARIANT {

template <typename T>
const LossKernels<T>& loss_kernels() {
  static constexpr LossKernels<T> kKernels = {loss<T>, sums<T>, finish<T>, products_grad<T>, bias_grad<T>};
  return kKernels;
}

template const LossKernels<float16>& loss_kernels<float16>();
template const LossKernels<bfloat16>& loss_kernels<bfloat16>();
template const LossKernels<float>& loss_kernels<float>();
template const LossKernels<double>& loss_kernels<double>();

}  // namespace LSOFTMAX_VARIANT
}  // namespace lsoftmax

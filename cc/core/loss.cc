// Compiled once for every CPU variant, as rows.cc is.
//
// A row is read three times in a row, so that it comes from memory once where it fits in the cache: for the largest
// logit, for the sum of the exponentials, and to make them the gradient. float and double keep the exponentials in the
// gradient's place in between; the halves, which would round them, compute them again.
#include "core/loss.h"

#include "core/exponential.h"
#include "core/target.h"

namespace lsoftmax {
namespace {

constexpr int64_t kBlock = 1024;  // classes whose exponentials stay in the first-level cache
constexpr int64_t kLanes = 32;    // kept apart for the vector unit

// Whether an array of T holds exponentials without rounding them.
template <typename T>
constexpr bool kKeepsExponentials = sizeof(T) == sizeof(Real<T>);

LSOFTMAX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// What makes logits of the products, class by class.
enum class Classes { kPlain, kBias, kFactors };

// The logits of one row without the margin.
template <typename T, Classes kClasses>
struct Logits {
  const T* products;
  const T* bias;
  const Real<T>* factors;
  Real<T> of_row;  // factor

  Logits(const Arguments<T>& args, int64_t row)
      : products(args.products + row * args.classes),
        bias(args.bias),
        factors(args.class_factors),
        of_row(static_cast<Real<T>>(row_factor_of(args, row))) {}

  Real<T> operator[](int64_t c) const {
    if constexpr (kClasses == Classes::kBias) return widen(products[c]) + widen(bias[c]);
    if constexpr (kClasses == Classes::kFactors) return widen(products[c]) * of_row * factors[c];
    return widen(products[c]);
  }

  Real<T> factor(int64_t c) const { return kClasses == Classes::kFactors ? factors[c] : 1; }

  // Those from class c on.
  Logits from(int64_t c) const {
    Logits rest = *this;
    rest.products += c;
    if (kClasses == Classes::kBias) rest.bias += c;
    if (kClasses == Classes::kFactors) rest.factors += c;
    return rest;
  }
};

// The largest of z[begin .. end), NaNs aside; -inf of none.
template <typename T, Classes kClasses>
LSOFTMAX_INLINE Real<T> largest(const Logits<T, kClasses>& z, int64_t begin, int64_t end) {
  Real<T> max = -static_cast<Real<T>>(INFINITY);
  int64_t c = begin;
  if (end - begin >= kLanes) {
    Real<T> lanes[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] = max;
    for (; c + kLanes <= end; c += kLanes) {
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] = z[c + l] > lanes[l] ? z[c + l] : lanes[l];
    }
    for (int64_t l = 0; l < kLanes; ++l) max = lanes[l] > max ? lanes[l] : max;
  }
  for (; c < end; ++c) max = z[c] > max ? z[c] : max;
  return max;
}

// The first place in [begin, end) where z is `value`, or `end`.
template <typename T, Classes kClasses>
LSOFTMAX_INLINE int64_t place_of(const Logits<T, kClasses>& z, int64_t begin, int64_t end, Real<T> value) {
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    int32_t hits = 0;
    for (int64_t l = 0; l < kLanes; ++l) hits |= z[c + l] == value;
    if (hits != 0) break;
  }
  while (c < end && z[c] != value) ++c;
  return c;
}

// e[c] = exp(z[c] - max) for c in [0, width); returns their sum. `e` may be where z's products are.
template <typename T, Classes kClasses>
LSOFTMAX_INLINE double exponentials(const Logits<T, kClasses>& z, int64_t width, Real<T> max, Real<T>* e) {
  double sum = 0;
  int64_t c = 0;
  if (width >= kLanes) {
    Real<T> lanes[kLanes] = {};
    for (; c + kLanes <= width; c += kLanes) {
      Real<T> x[kLanes];  // all lanes before the first is stored, so that they are computed side by side
      for (int64_t l = 0; l < kLanes; ++l) x[l] = exponential(z[c + l] - max);
      for (int64_t l = 0; l < kLanes; ++l) e[c + l] = x[l];
      for (int64_t l = 0; l < kLanes; ++l) lanes[l] += x[l];
    }
    for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  }
#pragma GCC ivdep
  for (int64_t t = c; t < width; ++t) e[t] = exponential(z[t] - max);
  for (; c < width; ++c) sum += e[c];
  return sum;
}

// The sum of exp(z - max) over [begin, end). Where `kept` is not null, they are left at kept[begin .. end).
template <typename T, Classes kClasses>
LSOFTMAX_INLINE double sum_of_exponentials(const Logits<T, kClasses>& z, int64_t begin, int64_t end, Real<T> max,
                                           Real<T>* kept) {
  alignas(64) Real<T> scratch[kBlock];
  double sum = 0;
  for (int64_t c = begin; c < end; c += kBlock) {
    sum += exponentials(z.from(c), smaller(kBlock, end - c), max, kept != nullptr ? kept + c : scratch);
  }
  return sum;
}

// The sum of z[begin .. end).
template <typename T, Classes kClasses>
LSOFTMAX_INLINE double total(const Logits<T, kClasses>& z, int64_t begin, int64_t end) {
  double lanes[kLanes] = {}, sum = 0;
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) lanes[l] += z[c + l];
  }
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  for (; c < end; ++c) sum += z[c];
  return sum;
}

// The sums over the row's classes at hand. Where `kept` is not null, exp(z - m) is left there of every class but the
// target.
template <typename T, Classes kClasses>
LSOFTMAX_INLINE Sums<double> sum_row(const Arguments<T>& args, int64_t row, Real<T>* kept) {
  const Logits<T, kClasses> z(args, row);
  const int64_t y = column_of(args, row);
  const bool has_target = y >= 0;
  const int64_t before = has_target ? y : args.classes, after = has_target ? y + 1 : args.classes;

  const Real<T> max_before = largest(z, 0, before), max_after = largest(z, after, args.classes);
  const Real<T> max = max_after > max_before ? max_after : max_before;
  Sums<double> sums = no_sums();
  sums.max = sums.best = max;
  if (has_target && z[y] > max) {
    sums.best = z[y];
    sums.predicted = static_cast<double>(y);
  } else {
    int64_t place = max_before == max ? place_of(z, 0, before, max) : before;
    if (place == before) place = has_target && z[y] == max ? y : place_of(z, after, args.classes, max);
    sums.predicted = place < args.classes ? static_cast<double>(place) : 0;  // of NaNs, the first
  }
  sums.predicted += static_cast<double>(args.range.first);
  if (args.terms != nullptr && terms_of(args.terms).smoothing != 0) {
    sums.total = total(z, 0, before) + total(z, after, args.classes);
  }
  // Where all of them are -inf their exponentials are 0.
  const Real<T> finite = max == -static_cast<Real<T>>(INFINITY) ? 0 : max;
  sums.sum =
      sum_of_exponentials(z, 0, before, finite, kept) + sum_of_exponentials(z, after, args.classes, finite, kept);
  return sums;
}

// gradient[c] = (exp(z[c] - max) scale + addend) factor(c) for every class; 0 at the target, and everywhere in a row
// without one. Only the target's logit may be above `max`: whatever comes of it is replaced.
template <typename T, Classes kClasses>
LSOFTMAX_INLINE void differentiate_row(const Arguments<T>& args, int64_t row, const Normalizer<double>& normalizer) {
  T* const gradient = args.products_grad + row * args.classes;
  const int64_t y = column_of(args, row);
  const Logits<T, kClasses> z(args, row);
  const Real<T> max = static_cast<Real<T>>(normalizer.max), scale = static_cast<Real<T>>(normalizer.scale);
  const Real<T> addend = static_cast<Real<T>>(normalizer.addend);
  if (y == kNone) {
    for (int64_t c = 0; c < args.classes; ++c) assign(gradient[c], 0);
    return;
  }
#pragma GCC ivdep
  for (int64_t c = 0; c < args.classes; ++c) {
    const Real<T> derivative = (exponential(z[c] - max) * scale + addend) * z.factor(c);
    assign(gradient[c], kClasses == Classes::kFactors ? fitted<T>(derivative) : derivative);
  }
  if (y >= 0) assign(gradient[y], 0);
}

// The same from the exponentials exp(z[c] - max), which are in the gradient's place.
template <typename R, Classes kClasses>
LSOFTMAX_INLINE void scale_row(const Arguments<R>& args, int64_t row, const Normalizer<double>& normalizer) {
  R* const gradient = args.products_grad + row * args.classes;
  const R* const factors = args.class_factors;
  const int64_t y = label_of(args.labels, row);
  const R scale = static_cast<R>(normalizer.scale), addend = static_cast<R>(normalizer.addend);
  if (y < 0) {
    for (int64_t c = 0; c < args.classes; ++c) gradient[c] = 0;
    return;
  }
  for (int64_t c = 0; c < args.classes; ++c) {
    gradient[c] = (gradient[c] * scale + addend) * (kClasses == Classes::kFactors ? factors[c] : 1);
  }
  gradient[y] = 0;
}

// The bias of the row's target; `bias` is of all classes.
template <typename T>
LSOFTMAX_INLINE double target_bias(const Arguments<T>& args, int64_t row) {
  const int64_t y = label_of(args.labels, row);
  return args.bias != nullptr && y >= 0 ? widen(args.bias[y]) : 0;
}

template <typename T, Classes kClasses>
void loss_rows(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lam);
  for (int64_t i = begin; i < end; ++i) {
    if constexpr (kKeepsExponentials<T>) {
      const Sums<double> sums = sum_row<T, kClasses>(args, i, args.products_grad + i * args.classes);
      scale_row<T, kClasses>(args, i, finish_row(args, alpha, i, target_bias(args, i), sums));
    } else {
      const Sums<double> sums = sum_row<T, kClasses>(args, i, nullptr);
      differentiate_row<T, kClasses>(args, i, finish_row(args, alpha, i, target_bias(args, i), sums));
    }
  }
}

// Runs kernel<T, kClasses> for the Classes of the batch.
#define LSOFTMAX_FOR_CLASSES(kernel, args)                        \
  ((args).class_factors != nullptr ? kernel<T, Classes::kFactors> \
   : (args).bias != nullptr        ? kernel<T, Classes::kBias>    \
                                   : kernel<T, Classes::kPlain>)

template <typename T>
void loss(const Arguments<T>& args, int64_t begin, int64_t end) {
  LSOFTMAX_FOR_CLASSES(loss_rows, args)(args, begin, end);
}

template <typename T>
void sums(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Sums<double> block = LSOFTMAX_FOR_CLASSES(sum_row, args)(args, i, nullptr);
    store(args, i, merge(sums_of(args, i), block));
  }
}

template <typename T>
void finish(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lam);
  for (int64_t i = begin; i < end; ++i) {
    store(args, i, finish_row(args, alpha, i, target_bias(args, i), sums_of(args, i)));
  }
}

template <typename T>
void products_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    LSOFTMAX_FOR_CLASSES(differentiate_row, args)(args, i, normalizer_of(args, i));
  }
}

template <typename T>
void bias_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  alignas(64) double sum[kBlock];
  for (int64_t first = begin; first < end; first += kBlock) {
    const int64_t width = smaller(kBlock, end - first);
    for (int64_t l = 0; l < width; ++l) sum[l] = 0;
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t y = column_of(args, i);
      const double grad = loss_grad_of(args, i);
      const T* const row = args.products_grad + i * args.classes + first;
      for (int64_t l = 0; l < width; ++l) sum[l] += grad * widen(row[l]);
      if (first <= y && y < first + width) sum[y - first] += grad * args.target_grad[i];
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

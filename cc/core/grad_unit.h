// The unit of a row's gradients in float16, which holds 11 digits of a number from 2^-14 to 2^16, and nothing below
// 2^-25.
//
// A row's probabilities p_j are written before the upstream gradient g is known, and with it the loss scale that is to
// lift them. So the row's gradients are written in units of u, a power of two that g takes on instead, and nothing is
// rounded by:
//
//   dX = (g u) ((P / u) W^T)        dW = ((g u) X)^T (P / u)        db = (g u)^T (P / u)
//
//   1 / u = the power of two at or below  min(max(x / p, 2^12 x / N), 2^8 / r),  from min(2^-6, 2^8 / r) to 2^40
//
// with x = |x| / sqrt(D), the size of a feature, p the largest of the other classes' probabilities, r their sum, N the
// rows. Where logits are multiples of the products, p and r are derivatives in the products: those times the factors of
// the row and of a class (margin.h). One unit cannot fit classes of all norms, and fits those whose norm is the
// target's. The entry of a class with less than 1 / 256 of it may not fit, and is the largest number that does.
//
//   x / p        makes P / u as large as a feature, (g u) x as large as g p: rounding it loses what rounding g p would
//   2^12 x / N   leaves (g u) x its digits if g is 1 / N or more, that of a mean; keeps far smaller classes beside p
//   2^8 / r      bounds (P / u) W^T by 256 times the largest weight: it does not overflow before X W does
#ifndef LSOFTMAX_CORE_GRAD_UNIT_H_
#define LSOFTMAX_CORE_GRAD_UNIT_H_

#include <stdint.h>

#include "core/half.h"
#include "core/words.h"

namespace lsoftmax {

// Whether the gradients of T have a unit: other types hold what float16 does not, and theirs is 1.
template <typename T>
constexpr bool kHasGradUnit = false;
template <>
constexpr bool kHasGradUnit<float16> = true;

// A derivative, in its unit, as T holds it: what is beyond float16 becomes the largest number that is not.
template <typename T>
LSOFTMAX_INLINE Real<T> fitted(Real<T> value) {
  if constexpr (!kHasGradUnit<T>) return value;
  const Real<T> most = kLargestFloat16;
  return value > most ? most : value < -most ? -most : value;
}

constexpr double kFeatureRange = 4096, kProductRange = 256, kMinLift = 0x1p-6, kMaxLift = 0x1p40;

// 1 / u, which the row's gradients are multiplied by; 1 without features to keep the digits of, or with a NaN.
// `largest`, `rest`: p and r.
template <typename Real>
LSOFTMAX_INLINE Real grad_lift(Real largest, Real rest, Real features_sq, Real depth, int64_t rows) {
  const Real x = root(features_sq / depth), least = number(x, kMinLift), most = number(x, kMaxLift);
  const Real fits = x / largest, keeps = number(x, kFeatureRange) * x / number(x, static_cast<double>(rows));
  const Real wanted = where(less(keeps, fits), fits, keeps), bound = number(x, kProductRange) / rest;
  const Real lift = where(less(wanted, bound), wanted, bound);
  const Real floor = where(less(bound, least), bound, least);
  const Real bounded = where(less(most, lift), most, power_of_two_below(where(less(lift, floor), floor, lift)));
  return where(less(number(x, 0), lift), bounded, number(x, 1));
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_GRAD_UNIT_H_

// The words that a formula is written in, beside + - * /, so that it stands once: for double here, and for whoever
// brings a type of whole batches with the same words (tf/xla/rows.h).
//
// There is no branch: `where` is given both of its values, and what is not taken may be NaN.
#ifndef LSOFTMAX_CORE_WORDS_H_
#define LSOFTMAX_CORE_WORDS_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/inline.h"

namespace lsoftmax {

// `value` in the type of `like`.
LSOFTMAX_INLINE double number(double, double value) { return value; }

// False where one is NaN.
LSOFTMAX_INLINE bool less(double a, double b) { return a < b; }

LSOFTMAX_INLINE bool is_zero(double a) { return a == 0; }
LSOFTMAX_INLINE bool either(bool a, bool b) { return a || b; }
LSOFTMAX_INLINE double where(bool condition, double yes, double no) { return condition ? yes : no; }

LSOFTMAX_INLINE double root(double a) { return sqrt(a); }
LSOFTMAX_INLINE double natural_exp(double a) { return exp(a); }
LSOFTMAX_INLINE double natural_log(double a) { return log(a); }
LSOFTMAX_INLINE double natural_log1p(double a) { return log1p(a); }

// The power of two at or below a normal a > 0.
LSOFTMAX_INLINE double power_of_two_below(double a) {
  uint64_t bits;
  memcpy(&bits, &a, sizeof bits);
  bits &= 0x7ff0000000000000u;  // the exponent alone
  double power;
  memcpy(&power, &bits, sizeof power);
  return power;
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_WORDS_H_

// The words of core/words.h in HLO, for a number, or a condition, of all rows at once.
#ifndef LSOFTMAX_TF_XLA_ROWS_H_
#define LSOFTMAX_TF_XLA_ROWS_H_

#include "tf/xla/hlo.h"

namespace lsoftmax {

struct Rows {
  XlaOp op;  // [N], or [] for the same in every row; F64 or PRED

  Rows(XlaOp op) : op(op) {}
  operator XlaOp() const { return op; }
};

inline Rows operator+(Rows a, Rows b) { return a.op + b.op; }
inline Rows operator-(Rows a, Rows b) { return a.op - b.op; }
inline Rows operator*(Rows a, Rows b) { return a.op * b.op; }
inline Rows operator/(Rows a, Rows b) { return a.op / b.op; }
inline Rows operator-(Rows a) { return -a.op; }

inline Rows number(Rows like, double value) { return number(like.op, value); }
inline Rows less(Rows a, Rows b) { return ::xla::Lt(a.op, b.op); }
inline Rows is_zero(Rows a) { return ::xla::Eq(a.op, number(a.op, 0)); }
inline Rows either(Rows a, Rows b) { return ::xla::Or(a.op, b.op); }
inline Rows where(Rows condition, Rows yes, Rows no) { return where(condition.op, yes.op, no.op); }
inline Rows root(Rows a) { return ::xla::Sqrt(a.op); }
inline Rows natural_exp(Rows a) { return ::xla::Exp(a.op); }
inline Rows natural_log(Rows a) { return ::xla::Log(a.op); }
inline Rows natural_log1p(Rows a) { return ::xla::Log1p(a.op); }
inline Rows power_of_two_below(Rows a) {
  const XlaOp exponent = ::xla::ConstantR0<int64_t>(a.op.builder(), 0x7ff0000000000000);
  return ::xla::BitcastConvertType(::xla::And(::xla::BitcastConvertType(a.op, ::xla::S64), exponent), ::xla::F64);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_ROWS_H_

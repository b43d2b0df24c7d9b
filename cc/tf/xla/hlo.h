// What the XLA kernels say in HLO: the few things that XLA has no single word for.
//
// XLA cannot stop with an error once it runs: a row that cannot be computed is NaN, as on the GPU.
#ifndef LSOFTMAX_TF_XLA_HLO_H_
#define LSOFTMAX_TF_XLA_HLO_H_

#include <array>

#include "core/arguments.h"
#include "tensorflow/compiler/tf2xla/xla_op_kernel.h"

namespace lsoftmax {

using ::xla::XlaOp;

// As the broadcast dimensions of an operation on a matrix [N, C] and a vector [N]: one number a row.
constexpr std::array<int64_t, 1> kByRow = {0};

// A scalar of the element type of `like`.
XlaOp number(XlaOp like, double value);

// Halves as float, which they are computed in; float and double as they are.
XlaOp widen(XlaOp x);

XlaOp to_double(XlaOp x);
XlaOp to_type_of(XlaOp like, XlaOp x);

// `yes` where the condition holds, else `no`.
XlaOp where(XlaOp condition, XlaOp yes, XlaOp no);
XlaOp where(XlaOp condition, XlaOp yes, double no);
XlaOp where(XlaOp condition, double yes, XlaOp no);

// Row `row` of a matrix [., N], as [N]; and a matrix of such rows.
XlaOp row_of(XlaOp matrix, int64_t row, int64_t size);
XlaOp matrix_of(std::initializer_list<XlaOp> rows, int64_t size);

// A vector [N] as every column of a matrix [N, columns].
XlaOp as_columns(XlaOp vector, int64_t rows, int64_t columns);

// Of a matrix, over its dimension `dim`, in its own element type.
XlaOp sum_over(int64_t dim, XlaOp x);
XlaOp max_over(int64_t dim, XlaOp x);

// Of a PRED matrix [rows, columns]: the first column [rows], S32, where it is true, or `columns`.
XlaOp first_true(XlaOp matrix, int64_t rows, int64_t columns);

// a [N, K] times b [K, D] in full precision, whatever the device would rather do.
XlaOp exact_product(XlaOp a, XlaOp b);

// Where the labels [N] of a batch point among `classes` classes, of which the first is class `first_class`. Of a block
// whose first class is an operand nobody tells how many classes there are: `bad` is any label that is not in it.
struct Targets {
  int64_t rows, classes;
  XlaOp column;  // [N], S32, in [0, classes); 0 where it is not here
  XlaOp here;    // [N], PRED: one of these classes
  XlaOp none;    // [N], PRED: -1
  XlaOp bad;     // [N], PRED: neither -1 nor one of all classes
};
Targets targets_of(XlaOp labels, int64_t rows, int64_t classes);
Targets targets_of(XlaOp labels, int64_t rows, int64_t classes, const ClassRange& range);
Targets targets_of(XlaOp labels, int64_t rows, int64_t classes, XlaOp first_class);

// PRED: `count` columns from `first` [], S64, on are among `width`.
XlaOp is_first(XlaOp first, int64_t count, int64_t width);

// [N, classes], PRED: the target's entry of each row.
XlaOp is_target(const Targets& targets);

// At each row's target: the entry of a matrix [N, classes], of a vector [classes], the column of weights [D, classes]
// (or, class-major, the row of weights [classes, D]) as a row of [N, D]; 0 where it is not here.
XlaOp entry_at(const Targets& targets, XlaOp matrix);
XlaOp element_at(const Targets& targets, XlaOp vector);
XlaOp column_at(const Targets& targets, XlaOp weights, int64_t depth, bool class_major);

// Such weights with `rows` [N, D] added, each to the column, or row, of its target. In one order on every device.
XlaOp add_to_columns(const Targets& targets, XlaOp weights, XlaOp rows, int64_t depth, bool class_major);

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_HLO_H_

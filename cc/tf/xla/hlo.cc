#include "tf/xla/hlo.h"

#include <limits>

namespace lsoftmax {

using ::xla::PrimitiveType;
using ::xla::XlaBuilder;

namespace {

// Of an operand that the builder has refused, any: the builder keeps the first error, and answers with it in the end.
PrimitiveType type_of(XlaOp x) {
  const auto shape = x.builder()->GetShape(x);
  return shape.ok() ? shape.value().element_type() : ::xla::F32;
}

using Combine = XlaOp (*)(XlaOp, XlaOp, absl::Span<const int64_t>);

XlaOp reduce(XlaOp x, int64_t dim, double start, Combine combine) {
  XlaBuilder builder("combine");
  const ::xla::Shape scalar = ::xla::ShapeUtil::MakeShape(type_of(x), {});
  combine(::xla::Parameter(&builder, 0, scalar, "a"), ::xla::Parameter(&builder, 1, scalar, "b"), {});
  return ::xla::Reduce(x, number(x, start), builder.Build().value(), {dim});
}

// The places [N, 1] of the targets in a dimension of classes, or [N, 2] of them in a matrix [N, classes].
XlaOp places(const Targets& targets) { return ::xla::Reshape(targets.column, {targets.rows, 1}); }
XlaOp places_in_matrix(const Targets& targets) {
  XlaBuilder* const builder = targets.column.builder();
  const XlaOp rows = ::xla::Iota(builder, ::xla::S32, targets.rows);
  return ::xla::ConcatInDim(builder, {::xla::Reshape(rows, {targets.rows, 1}), places(targets)}, 1);
}

}  // namespace

XlaOp number(XlaOp like, double value) {
  return ::xla::ConvertElementType(::xla::ConstantR0<double>(like.builder(), value), type_of(like));
}

XlaOp widen(XlaOp x) {
  const PrimitiveType type = type_of(x);
  return type == ::xla::F16 || type == ::xla::BF16 ? ::xla::ConvertElementType(x, ::xla::F32) : x;
}

XlaOp to_double(XlaOp x) { return ::xla::ConvertElementType(x, ::xla::F64); }
XlaOp to_type_of(XlaOp like, XlaOp x) { return ::xla::ConvertElementType(x, type_of(like)); }

XlaOp where(XlaOp condition, XlaOp yes, XlaOp no) { return ::xla::Select(condition, yes, no); }
XlaOp where(XlaOp condition, XlaOp yes, double no) { return ::xla::Select(condition, yes, number(yes, no)); }
XlaOp where(XlaOp condition, double yes, XlaOp no) { return ::xla::Select(condition, number(no, yes), no); }

XlaOp row_of(XlaOp matrix, int64_t row, int64_t size) {
  return ::xla::Reshape(::xla::SliceInDim(matrix, row, row + 1, 1, 0), {size});
}

XlaOp matrix_of(std::initializer_list<XlaOp> rows, int64_t size) {
  std::vector<XlaOp> matrices;
  for (const XlaOp row : rows) matrices.push_back(::xla::Reshape(row, {1, size}));
  return ::xla::ConcatInDim(matrices[0].builder(), matrices, 0);
}

XlaOp as_columns(XlaOp vector, int64_t rows, int64_t columns) {
  return ::xla::BroadcastInDim(vector, {rows, columns}, {0});
}

XlaOp sum_over(int64_t dim, XlaOp x) { return reduce(x, dim, 0, ::xla::Add); }
XlaOp max_over(int64_t dim, XlaOp x) { return reduce(x, dim, -std::numeric_limits<double>::infinity(), ::xla::Max); }

XlaOp first_true(XlaOp matrix, int64_t rows, int64_t columns) {
  const ::xla::Shape shape = ::xla::ShapeUtil::MakeShape(::xla::S32, {rows, columns});
  return reduce(where(matrix, ::xla::Iota(matrix.builder(), shape, 1), columns), 1, columns, ::xla::Min);
}

XlaOp exact_product(XlaOp a, XlaOp b) {
  ::xla::PrecisionConfig precision;
  precision.add_operand_precision(::xla::PrecisionConfig::HIGHEST);
  precision.add_operand_precision(::xla::PrecisionConfig::HIGHEST);
  return ::xla::Dot(a, b, &precision);
}

Targets targets_of(XlaOp labels, int64_t rows, int64_t classes) {
  return targets_of(labels, rows, classes, number(labels, 0));
}

Targets targets_of(XlaOp labels, int64_t rows, int64_t classes, const ClassRange& range) {
  if (range.count == 0) return targets_of(labels, rows, classes);
  XlaBuilder* const builder = labels.builder();
  const XlaOp wide = ::xla::ConvertElementType(labels, ::xla::S64);
  const XlaOp one_of_all =
      ::xla::And(::xla::Ge(wide, number(wide, 0)), ::xla::Lt(wide, ::xla::ConstantR0<int64_t>(builder, range.count)));
  Targets targets = targets_of(labels, rows, classes, ::xla::ConstantR0<int64_t>(builder, range.first));
  targets.bad = ::xla::Not(::xla::Or(one_of_all, targets.none));
  return targets;
}

Targets targets_of(XlaOp labels, int64_t rows, int64_t classes, XlaOp first_class) {
  const XlaOp wide = ::xla::ConvertElementType(labels, ::xla::S64);
  const XlaOp place = wide - ::xla::ConvertElementType(first_class, ::xla::S64);
  const XlaOp here = ::xla::And(::xla::Ge(place, number(place, 0)), ::xla::Lt(place, number(place, classes)));
  const XlaOp none = ::xla::Eq(wide, number(wide, -1));
  return {rows, classes, ::xla::ConvertElementType(where(here, place, 0), ::xla::S32),
          here, none,    ::xla::Not(::xla::Or(here, none))};
}

XlaOp is_first(XlaOp first, int64_t count, int64_t width) {
  const XlaOp last = ::xla::ConstantR0<int64_t>(first.builder(), width - count);
  return ::xla::And(::xla::Ge(first, number(first, 0)), ::xla::Le(first, last));
}

XlaOp is_target(const Targets& targets) {
  const int64_t n = targets.rows, c = targets.classes;
  const XlaOp classes = ::xla::Iota(targets.column.builder(), ::xla::ShapeUtil::MakeShape(::xla::S32, {n, c}), 1);
  return ::xla::And(::xla::Eq(classes, targets.column, kByRow), targets.here, kByRow);
}

XlaOp entry_at(const Targets& targets, XlaOp matrix) {
  if (targets.rows == 0) return ::xla::Broadcast(number(matrix, 0), {0});  // a gather needs something to gather from
  ::xla::GatherDimensionNumbers dims;
  dims.add_collapsed_slice_dims(0);
  dims.add_collapsed_slice_dims(1);
  dims.add_start_index_map(0);
  dims.add_start_index_map(1);
  dims.set_index_vector_dim(1);
  return where(targets.here, ::xla::Gather(matrix, places_in_matrix(targets), dims, {1, 1}), 0);
}

XlaOp element_at(const Targets& targets, XlaOp vector) {
  ::xla::GatherDimensionNumbers dims;
  dims.add_collapsed_slice_dims(0);
  dims.add_start_index_map(0);
  dims.set_index_vector_dim(1);
  return where(targets.here, ::xla::Gather(vector, places(targets), dims, {1}), 0);
}

XlaOp column_at(const Targets& targets, XlaOp weights, int64_t depth, bool class_major) {
  const int64_t of_classes = class_major ? 0 : 1;
  ::xla::GatherDimensionNumbers dims;
  dims.add_offset_dims(1);
  dims.add_collapsed_slice_dims(of_classes);
  dims.add_start_index_map(of_classes);
  dims.set_index_vector_dim(1);
  const std::vector<int64_t> slice = class_major ? std::vector<int64_t>{1, depth} : std::vector<int64_t>{depth, 1};
  return where(as_columns(targets.here, targets.rows, depth), ::xla::Gather(weights, places(targets), dims, slice), 0);
}

// A scatter of rows that share a column would add them by atomics on the GPU, in any order. Here those of a class are
// summed up by a product with the matrix that tells which rows belong together; it is the smaller of [N, N] and
// [classes, N].
XlaOp add_to_columns(const Targets& targets, XlaOp weights, XlaOp rows, int64_t depth, bool class_major) {
  const int64_t n = targets.rows, c = targets.classes;
  if (c < n) {
    const XlaOp belongs = to_type_of(rows, is_target(targets));
    const XlaOp sums = class_major ? exact_product(::xla::Transpose(belongs, {1, 0}), rows)
                                   : exact_product(::xla::Transpose(rows, {1, 0}), belongs);
    return to_type_of(weights, widen(weights) + sums);
  }
  XlaBuilder* const builder = rows.builder();
  const XlaOp column = where(targets.here, targets.column, -1);
  const XlaOp together = ::xla::Eq(as_columns(column, n, n), column, {1});
  const XlaOp sums = exact_product(to_type_of(rows, together), rows);
  const XlaOp new_columns = to_type_of(weights, widen(column_at(targets, weights, depth, class_major)) + sums);
  XlaBuilder replace("replace");
  const ::xla::Shape scalar = ::xla::ShapeUtil::MakeShape(type_of(weights), {});
  ::xla::Parameter(&replace, 0, scalar, "old");
  ::xla::Parameter(&replace, 1, scalar, "new");
  ::xla::ScatterDimensionNumbers dims;
  dims.add_inserted_window_dims(0);
  dims.add_scatter_dims_to_operand_dims(0);
  dims.set_index_vector_dim(1);
  const auto put = [&](XlaOp matrix, XlaOp places, XlaOp values) {
    return ::xla::Scatter(matrix, places, values, replace.Build().value(), dims, /*indices_are_sorted=*/false,
                          /*unique_indices=*/true);
  };

  // The first row of each class writes the column; the places of the others lie outside, which drops them.
  const XlaOp row = ::xla::Iota(builder, ::xla::S32, n);
  const XlaOp writes = ::xla::And(targets.here, ::xla::Eq(first_true(together, n, n), row));
  if (class_major) {
    const XlaOp wide_row = ::xla::ConvertElementType(row, ::xla::S64);
    const XlaOp inside = ::xla::ConvertElementType(targets.column, ::xla::S64);
    dims.add_update_window_dims(1);
    return put(weights, ::xla::Reshape(where(writes, inside, wide_row + number(wide_row, c)), {n, 1}), new_columns);
  }
  // The matrix is taken as one line of entries: XLA would transpose it, there and back, to put columns into it.
  const PrimitiveType integer = depth * (n + c) > std::numeric_limits<int32_t>::max() ? ::xla::S64 : ::xla::S32;
  const auto iota = [&](int64_t dim) {
    return ::xla::Iota(builder, ::xla::ShapeUtil::MakeShape(integer, {n, depth}), dim);
  };
  const XlaOp inside = iota(1) * number(iota(1), c) + as_columns(to_type_of(iota(0), targets.column), n, depth);
  const XlaOp outside = iota(0) * number(iota(0), depth) + iota(1) + number(iota(0), depth * c);
  const XlaOp entries = ::xla::Reshape(where(as_columns(writes, n, depth), inside, outside), {n * depth, 1});
  const XlaOp line = put(::xla::Reshape(weights, {depth * c}), entries, ::xla::Reshape(new_columns, {n * depth}));
  return ::xla::Reshape(line, {depth, c});
}

}  // namespace lsoftmax

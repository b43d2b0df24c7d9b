#include "tf/xla/margin.h"

#include <limits>

namespace lsoftmax {
namespace hlo {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

Geometry<Rows> geometry_of(XlaOp geometry, int64_t rows) {
  return {row_of(geometry, 0, rows), row_of(geometry, 1, rows), row_of(geometry, 2, rows)};
}

Geometry<Rows> geometry_between(const Targets& targets, XlaOp features, XlaOp target_weights) {
  const XlaOp x = to_double(features), w = to_double(target_weights);
  const auto of_row = [&](XlaOp products) {
    return where(targets.bad, kNan, where(targets.here, sum_over(1, products), 0));
  };
  return {of_row(x * w), of_row(x * x), of_row(w * w)};
}

XlaOp matrix_of(const Geometry<Rows>& g, int64_t rows) {
  return lsoftmax::matrix_of({g.dot, g.features_sq, g.weights_sq}, rows);
}

Geometry<Rows> operator*(Rows factor, const Geometry<Rows>& g) {
  return {factor * g.dot, factor * g.features_sq, factor * g.weights_sq};
}

TargetLogit<Rows> target_logit_of(const Margin& margin, const std::optional<Terms<Rows>>& terms, XlaOp alpha,
                                  const Geometry<Rows>& geometry) {
  if (!terms) return target_logit<Rows>(margin, alpha, geometry);
  return target_logit<Rows>(margin, *terms, alpha, geometry);
}

XlaOp is_lost(const Targets& targets, XlaOp lambda) {
  return ::xla::Or(targets.bad, ::xla::Not(::xla::Ge(lambda, number(lambda, 0))));
}

Sums<Rows> sums_of(XlaOp sums, int64_t rows) {
  return {row_of(sums, 0, rows), row_of(sums, 1, rows), row_of(sums, 2, rows), row_of(sums, 3, rows),
          row_of(sums, 4, rows)};
}

XlaOp matrix_of(const Sums<Rows>& s, int64_t rows) {
  return lsoftmax::matrix_of({s.max, s.sum, s.best, s.predicted, s.total}, rows);
}

namespace {

XlaOp others_of(const Targets& targets, XlaOp logits) { return where(is_target(targets), -kInfinity, logits); }

}  // namespace

XlaOp exponentials(const Targets& targets, XlaOp logits, XlaOp max) {
  // Where all of them are -inf, their exponentials are 0.
  const XlaOp finite = where(::xla::Eq(max, number(max, -kInfinity)), 0, max);
  return ::xla::Exp(::xla::Sub(others_of(targets, logits), finite, kByRow));
}

Sums<Rows> sum_up(const Targets& targets, const std::optional<Terms<Rows>>& terms, XlaOp logits,
                  XlaOp* exponentials_of_others) {
  const XlaOp max = max_over(1, others_of(targets, logits)), best = max_over(1, logits);
  const XlaOp e = exponentials(targets, logits, max);
  if (exponentials_of_others != nullptr) *exponentials_of_others = e;
  const XlaOp place = first_true(::xla::Eq(logits, best, kByRow), targets.rows, targets.classes);
  // Of NaNs, the first.
  const XlaOp predicted = where(::xla::Lt(place, number(place, targets.classes)), place, 0);
  Rows total = ::xla::Broadcast(number(to_double(max), 0), {targets.rows});
  if (terms) {
    const Rows of_others = sum_over(1, where(is_target(targets), 0, to_double(logits)));
    total = where(is_zero(terms->smoothing), total, of_others);
  }
  return {to_double(max), to_double(sum_over(1, e)), to_double(best), to_double(predicted), total};
}

Finished<Rows> finish_rows(const Targets& targets, const Margin& margin, const std::optional<Terms<Rows>>& terms,
                           XlaOp lambda, const Geometry<Rows>& geometry, XlaOp target_bias, const Sums<Rows>& sums,
                           XlaOp depth, bool has_unit) {
  const TargetLogit<Rows> t = target_logit_of(margin, terms, margin_share(Rows(lambda)), geometry);
  const Finished<Rows> row =
      finish<Rows>(margin, terms ? &*terms : nullptr, t, geometry, target_bias, sums, depth, targets.rows, has_unit);
  const XlaOp lost = is_lost(targets, lambda);
  const auto or_else = [&](XlaOp value) -> Rows { return where(lost, kNan, where(targets.none, 0, value)); };
  const Geometry<Rows>& grad = row.geometry_grad;
  return {or_else(row.loss),
          or_else(row.target_grad),
          {or_else(grad.dot), or_else(grad.features_sq), or_else(grad.weights_sq)},
          {or_else(row.normalizer.max), or_else(row.normalizer.scale), or_else(row.normalizer.addend)},
          ::xla::ConvertElementType(where(::xla::Or(lost, targets.none), 1, row.unit), ::xla::F32)};
}

XlaOp class_of(const Sums<Rows>& sums) { return ::xla::ConvertElementType(sums.predicted, ::xla::S64); }

Normalizer<Rows> normalizer_of(XlaOp normalizer, int64_t rows) {
  return {row_of(normalizer, 0, rows), row_of(normalizer, 1, rows), row_of(normalizer, 2, rows)};
}

XlaOp matrix_of(const Normalizer<Rows>& n, int64_t rows) {
  return lsoftmax::matrix_of({n.max, n.scale, n.addend}, rows);
}

XlaOp products_grad(const Targets& targets, XlaOp exponentials, const Normalizer<Rows>& normalizer, bool has_terms,
                    bool has_unit, const std::optional<XlaOp>& class_factors) {
  const XlaOp scale = to_type_of(exponentials, normalizer.scale);
  const XlaOp nothing = as_columns(::xla::Eq(scale, number(scale, 0)), targets.rows, targets.classes);
  // At the target the exponential is 0, and so is this: or NaN in a row that is lost.
  const XlaOp scaled = where(nothing, 0, ::xla::Mul(exponentials, scale, kByRow));
  if (!has_terms) return scaled;
  const XlaOp smoothed = ::xla::Add(scaled, to_type_of(scaled, normalizer.addend), kByRow);
  const XlaOp stays = ::xla::Or(is_target(targets), targets.none, kByRow);
  if (!class_factors) return where(stays, scaled, smoothed);
  const XlaOp derivatives = ::xla::Mul(smoothed, *class_factors, {1});
  if (!has_unit) return where(stays, scaled, derivatives);
  const XlaOp most = number(derivatives, kLargestFloat16), is_nan = ::xla::Ne(derivatives, derivatives);
  return where(::xla::Or(stays, is_nan), where(stays, scaled, derivatives), ::xla::Clamp(-most, derivatives, most));
}

}  // namespace hlo
}  // namespace lsoftmax

#include "tf/xla/margin.h"

#include <limits>

#include "core/grad_unit.h"

namespace lsoftmax {
namespace hlo {

using ::xla::And;
using ::xla::Eq;
using ::xla::Exp;
using ::xla::Ge;
using ::xla::Gt;
using ::xla::Lt;
using ::xla::Ne;
using ::xla::Not;
using ::xla::Or;
using ::xla::Sqrt;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// S exp(m - M): a sum relative to m, from now on relative to `max` >= m.
XlaOp rescale(XlaOp sum, XlaOp m, XlaOp max) { return where(Eq(sum, number(sum, 0)), 0, sum * Exp(m - max)); }

}  // namespace

Geometry geometry_of(XlaOp geometry, int64_t rows) {
  return {row_of(geometry, 0, rows), row_of(geometry, 1, rows), row_of(geometry, 2, rows)};
}

Geometry geometry_between(const Targets& targets, XlaOp features, XlaOp target_weights) {
  const XlaOp x = to_double(features), w = to_double(target_weights);
  const auto of_row = [&](XlaOp products) {
    return where(targets.bad, kNan, where(targets.here, sum_over(1, products), 0));
  };
  return {of_row(x * w), of_row(x * x), of_row(w * w)};
}

XlaOp matrix_of(const Geometry& g, int64_t rows) {
  return lsoftmax::matrix_of({g.dot, g.features_sq, g.weights_sq}, rows);
}

Geometry operator*(XlaOp factor, const Geometry& g) {
  return {factor * g.dot, factor * g.features_sq, factor * g.weights_sq};
}

XlaOp cos_theta(const Geometry& g) {
  const XlaOp zero = number(g.dot, 0), one = number(g.dot, 1);
  const XlaOp c = g.dot / Sqrt(g.features_sq) / Sqrt(g.weights_sq);
  const XlaOp clamped = where(Lt(c, -one), -1, where(Gt(c, one), 1, c));
  return where(Or(Eq(g.features_sq, zero), Eq(g.weights_sq, zero)), 0, clamped);
}

Psi psi(int margin, XlaOp c) {
  const XlaOp zero = number(c, 0), two = number(c, 2);
  XlaOp before = zero, u = number(c, 1);  // U_{j-1} and U_j, from j = 0
  XlaOp segment = zero, sign = number(c, 1);
  for (int j = 1; j < margin; ++j) {
    const XlaOp next = two * c * u - before;
    before = u;
    u = next;
    const XlaOp changes = Lt(sign * u, zero);
    segment = segment + to_type_of(c, changes);
    sign = where(changes, -sign, sign);
  }
  return {sign * (c * u - before) - two * segment, sign * number(c, margin) * u, segment};
}

TargetLogit target_logit(int margin, XlaOp lambda, const Geometry& g) {
  const XlaOp zero = number(lambda, 0), one = number(lambda, 1);
  const XlaOp alpha = one / (one + lambda);
  const XlaOp can_have = ::xla::ConstantR0<bool>(lambda.builder(), margin > 1);
  const XlaOp has_margin = And(And(Ne(g.features_sq, zero), Ne(g.weights_sq, zero)), And(Ne(alpha, zero), can_have));
  const XlaOp a = Sqrt(g.features_sq), b = Sqrt(g.weights_sq), c = cos_theta(g);
  const Psi p = psi(margin, c);
  const XlaOp q = alpha * (p.value - c * p.slope) / number(lambda, 2);
  return {where(has_margin, g.dot + alpha * (a * b * p.value - g.dot), g.dot),
          {where(has_margin, one + alpha * (p.slope - one), 1), where(has_margin, q * b / a, 0),
           where(has_margin, q * a / b, 0)},
          has_margin};
}

XlaOp is_lost(const Targets& targets, XlaOp lambda) { return Or(targets.bad, Not(Ge(lambda, number(lambda, 0)))); }

Sums sums_of(XlaOp sums, int64_t rows) {
  return {row_of(sums, 0, rows), row_of(sums, 1, rows), row_of(sums, 2, rows), row_of(sums, 3, rows)};
}

XlaOp matrix_of(const Sums& s, int64_t rows) { return lsoftmax::matrix_of({s.max, s.sum, s.best, s.predicted}, rows); }

Sums merge(const Sums& a, const Sums& b) {
  const XlaOp max = where(Gt(b.max, a.max), b.max, a.max);
  const XlaOp later = Gt(b.best, a.best);
  return {max, rescale(a.sum, a.max, max) + rescale(b.sum, b.max, max), where(later, b.best, a.best),
          where(later, b.predicted, a.predicted)};
}

namespace {

XlaOp others_of(const Targets& targets, XlaOp logits) { return where(is_target(targets), -kInfinity, logits); }

}  // namespace

XlaOp exponentials(const Targets& targets, XlaOp logits, XlaOp max) {
  const XlaOp finite = where(Eq(max, number(max, -kInfinity)), 0, max);  // all of them -inf: their exponentials are 0
  return Exp(::xla::Sub(others_of(targets, logits), finite, kByRow));
}

Sums sum_up(const Targets& targets, XlaOp logits, XlaOp* exponentials_of_others) {
  const XlaOp max = max_over(1, others_of(targets, logits)), best = max_over(1, logits);
  const XlaOp e = exponentials(targets, logits, max);
  if (exponentials_of_others != nullptr) *exponentials_of_others = e;
  const XlaOp place = first_true(Eq(logits, best, kByRow), targets.rows, targets.classes);
  const XlaOp predicted = where(Lt(place, number(place, targets.classes)), place, 0);  // of NaNs, the first
  return {to_double(max), to_double(sum_over(1, e)), to_double(best), to_double(predicted)};
}

CrossEntropy cross_entropy(const Sums& others, XlaOp target) {
  const XlaOp zero = number(target, 0), one = number(target, 1);
  const XlaOp leads = Not(Gt(others.max, target));
  const XlaOp max = where(leads, target, others.max);
  const XlaOp rest = rescale(others.sum, others.max, max), own = where(leads, one + zero * target, Exp(target - max));
  const XlaOp loss = where(leads, ::xla::Log1p(rest) + zero * target, ::xla::Log(rest + own) + (max - target));
  const XlaOp alone = Eq(others.sum, zero);
  return {loss, -rest / (rest + own), where(alone, 0, others.max),
          where(alone, 0, rescale(one, others.max, max) / (rest + own))};
}

XlaOp grad_lift(XlaOp largest, XlaOp rest, XlaOp features_sq, XlaOp depth, int64_t rows) {
  const XlaOp x = Sqrt(features_sq / depth), least = number(x, kMinLift), most = number(x, kMaxLift);
  const XlaOp fits = x / largest, keeps = number(x, kFeatureRange / static_cast<double>(rows)) * x;
  const XlaOp bound = number(x, kProductRange) / rest, wanted = where(Gt(fits, keeps), fits, keeps);
  const XlaOp lift = where(Lt(wanted, bound), wanted, bound);
  const XlaOp exponent = ::xla::ConstantR0<int64_t>(x.builder(), 0x7ff0000000000000);
  const XlaOp power = ::xla::BitcastConvertType(And(::xla::BitcastConvertType(lift, ::xla::S64), exponent), ::xla::F64);
  const XlaOp bounded = where(Lt(lift, least), kMinLift, where(Gt(lift, most), kMaxLift, power));
  return where(Gt(lift, number(x, 0)), bounded, 1);
}

Finished finish(const Targets& targets, int margin, XlaOp lambda, const Geometry& geometry, XlaOp depth,
                XlaOp target_bias, const Sums& sums, bool has_grad_unit) {
  const XlaOp lost = is_lost(targets, lambda);
  const TargetLogit t = target_logit(margin, lambda, geometry);
  const CrossEntropy h = cross_entropy(sums, t.value + target_bias);
  const auto of_row = [&](XlaOp value) { return where(lost, kNan, where(targets.none, 0, value)); };
  XlaOp lift = where(targets.none, 1, number(h.slope, 1));  // 1 in every row
  if (has_grad_unit) {
    const XlaOp wanted = grad_lift(h.scale, -h.slope, geometry.features_sq, depth, targets.rows);
    lift = where(Or(lost, targets.none), 1, wanted);
  }
  const XlaOp slope = of_row(h.slope * lift);
  const Geometry grad = slope * t.slope;
  return {of_row(h.loss),
          {of_row(grad.dot), of_row(grad.features_sq), of_row(grad.weights_sq)},
          slope,
          of_row(h.max),
          of_row(h.scale * lift),
          ::xla::ConvertElementType(number(lift, 1) / lift, ::xla::F32)};
}

XlaOp class_of(const Sums& sums) { return ::xla::ConvertElementType(sums.predicted, ::xla::S64); }

XlaOp products_grad(const Targets& targets, XlaOp exponentials, XlaOp scale) {
  scale = to_type_of(exponentials, scale);
  const XlaOp nothing = as_columns(Eq(scale, number(scale, 0)), targets.rows, targets.classes);
  return where(nothing, 0, ::xla::Mul(exponentials, scale, kByRow));
}

}  // namespace hlo
}  // namespace lsoftmax

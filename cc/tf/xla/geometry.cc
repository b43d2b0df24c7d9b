// TargetGeometry and the gradients that go back through it in HLO; the formulas are in the ops' own file.
#include "tf/xla/calls.h"
#include "tf/xla/margin.h"

namespace lsoftmax {
namespace hlo {
namespace {

absl::Status target_geometry(const Node& node) {
  const Targets targets = node.targets();
  const XlaOp w = node.target_weights(targets);
  node.out("same_features", node.in("features"));
  node.out("same_weights", node.in("weights"));
  node.out("geometry", matrix_of(geometry_between(targets, node.in("features"), w), node.sizes.rows()));
  return absl::Status();
}

// The upstream gradient of a batch's geometry and of its loss, and the weights that they are about.
struct Upstream {
  explicit Upstream(const Node& node)
      : targets(node.targets()),
        h(to_double(node.upstream())),
        geometry(h * geometry_of(node.in("geometry_grad"), node.sizes.rows())),
        target_weights(node.has("target_weights") ? node.in("target_weights") : node.target_weights(targets)) {}

  const Targets targets;
  const XlaOp h;  // [N], or []: 1
  const Geometry<Rows> geometry;
  const XlaOp target_weights;  // [N, D]
};

// factor a, row by row, in double.
XlaOp times(XlaOp a, XlaOp factor) { return ::xla::Mul(to_double(a), factor, kByRow); }

// The dimension of weights along which a class lies; the other is that of the classes.
int64_t features_of_weights(const Node& node) { return node.class_major() ? 1 : 0; }

absl::Status class_factors(const Node& node) {
  const XlaOp weights = node.in("weights"), w = to_double(weights);
  node.out("class_factors", to_type_of(widen(weights), inverse_norm(Rows(sum_over(features_of_weights(node), w * w)))));
  return absl::Status();
}

// v . g / |v|^2, or 0 where v is 0: v times it is the part of the gradient g along v. Vectors lie along dimension
// `dim`.
XlaOp radial_part(int64_t dim, XlaOp vectors, XlaOp gradient) {
  const XlaOp v = to_double(vectors), norm_sq = sum_over(dim, v * v);
  return where(is_zero(norm_sq), 0, sum_over(dim, v * to_double(gradient)) / norm_sq);
}

absl::Status features_grad(const Node& node) {
  const Upstream upstream(node);
  const Geometry<Rows>& g = upstream.geometry;
  const XlaOp products = node.in("products_features_grad");
  const XlaOp share = times(upstream.target_weights, g.dot) + times(node.in("features"), g.features_sq + g.features_sq);
  XlaOp scaled = node.has("loss_grad") ? times(products, upstream.h) : to_double(products);
  if (node.margin.normalize_features) {
    const XlaOp radial = radial_part(/*dim=*/1, node.in("features"), products);
    scaled = scaled - times(node.in("features"), upstream.h * radial);
  }
  const XlaOp here = as_columns(upstream.targets.here, node.sizes.rows(), node.sizes.depth());
  node.out("features_grad", where(here, to_type_of(products, scaled + share), to_type_of(products, scaled)));
  return absl::Status();
}

absl::Status weights_grad(const Node& node) {
  const Upstream upstream(node);
  const Geometry<Rows>& g = upstream.geometry;
  XlaOp products = node.in("products_weights_grad");
  if (node.margin.normalize_weights) {
    const int64_t dim = features_of_weights(node);
    const XlaOp weights = node.in("weights"), along_w = radial_part(dim, weights, products);
    products = to_type_of(products, to_double(products) - ::xla::Mul(to_double(weights), along_w, {1 - dim}));
  }
  const XlaOp share = times(node.in("features"), g.dot) + times(upstream.target_weights, g.weights_sq + g.weights_sq);
  const XlaOp here = as_columns(upstream.targets.here, node.sizes.rows(), node.sizes.depth());
  const XlaOp rows = to_type_of(widen(products), where(here, share, 0));
  node.out("weights_grad", add_to_columns(upstream.targets, products, rows, node.sizes.depth(), node.class_major()));
  return absl::Status();
}

LSOFTMAX_REGISTER_XLA("LsoftmaxTargetGeometry", call_or_formula<kGeometryCall, target_geometry>);
LSOFTMAX_REGISTER_XLA("LsoftmaxClassFactors", call_or_formula<kClassFactorsCall, class_factors>);
LSOFTMAX_REGISTER_XLA("LsoftmaxFeaturesGrad", call_or_formula<kFeaturesGradCall, features_grad>);
LSOFTMAX_REGISTER_XLA("LsoftmaxWeightsGrad", call_or_formula<kWeightsGradCall, weights_grad>);

}  // namespace
}  // namespace hlo
}  // namespace lsoftmax

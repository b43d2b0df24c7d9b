#include "tf/xla/calls.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "tf/xla/margin.h"

namespace lsoftmax {

Answers& answers_on(bool gpu) {
  static Answers answers[2];
  return answers[gpu];
}

bool can_call(const Node& node, std::string_view handler) {
  const char* const calls = getenv("LSOFTMAX_XLA_CALLS");
  if (calls != nullptr && strcmp(calls, "OFF") == 0) return false;
  const std::vector<std::string_view>& handlers = answers_on(node.on_gpu).handlers;
  if (std::find(handlers.begin(), handlers.end(), handler) == handlers.end()) return false;
  for (int i = 0; i < node.context->num_inputs(); ++i) {
    const auto shape = node.context->builder()->GetShape(node.context->Input(i));
    if (!shape.ok() || !shape->is_static()) return false;
  }
  return true;
}

namespace {

using ::xla::Shape;
using ::xla::ShapeUtil;

// Operands and results lie in memory as they do for every other kernel: row by row.
Shape dense(::xla::PrimitiveType type, absl::Span<const int64_t> dimensions) {
  return ShapeUtil::MakeShapeWithDescendingLayout(type, dimensions);
}

::xla::PrimitiveType type_of(const Array& array, ::xla::PrimitiveType real) {
  switch (array.element) {
    case Element::kDouble:
      return ::xla::F64;
    case Element::kFloat:
      return ::xla::F32;
    case Element::kWide:
      return real == ::xla::F64 ? ::xla::F64 : ::xla::F32;
    case Element::kInt64:
      return ::xla::S64;
    case Element::kInt32:
      return ::xla::S32;
    default:
      return real;
  }
}

// A handler's results, as a tuple. In place: the first one takes the first operand's buffer.
XlaOp call(const std::string& handler, const std::vector<XlaOp>& operands, const std::vector<Shape>& results,
           const std::string& attributes, bool in_place) {
  ::xla::XlaBuilder* const builder = operands[0].builder();
  std::vector<Shape> shapes;
  for (const XlaOp operand : operands) {
    const Shape shape = builder->GetShape(operand).value();
    shapes.push_back(dense(shape.element_type(), shape.dimensions()));
  }
  using Alias = std::pair<::xla::ShapeIndex, std::pair<int64_t, ::xla::ShapeIndex>>;
  const Alias first_in_first = {{0}, {0, {}}};
  const std::vector<Alias> aliases(in_place ? 1 : 0, first_in_first);
  return ::xla::CustomCallWithLayout(builder, handler, operands, ShapeUtil::MakeTupleShape(results), shapes, attributes,
                                     /*has_side_effect=*/false, aliases, /*literal=*/nullptr,
                                     ::xla::CustomCallSchedule::SCHEDULE_NONE,
                                     ::xla::CustomCallApiVersion::API_VERSION_TYPED_FFI);
}

// Operands that are not the op's input of their name.
using Given = std::vector<std::pair<std::string_view, XlaOp>>;

std::vector<XlaOp> operands_of(const Node& node, const Call& call, const Given& given) {
  std::vector<XlaOp> operands;
  for (size_t i = 0; i < call.operands.size() && call.operands[i] != nullptr; ++i) {
    const std::string_view name = call.operands[i];
    const auto own = std::find_if(given.begin(), given.end(), [name](const auto& one) { return one.first == name; });
    operands.push_back(own != given.end() ? own->second : node.in(i == 0 ? call.first : call.operands[i]));
  }
  return operands;
}

// XLA may give operands that are the same array one buffer. The CPU's handlers then copy what they still have to read.
// Those that get their memory from us have none to copy to: there the result has a buffer of its own.
bool goes_in_place(const Call& call, const Answers& answers, const std::vector<XlaOp>& operands) {
  const auto is_first = [&](XlaOp other) { return other.IsIdenticalTo(operands[0]); };
  const bool is_shared = std::any_of(operands.begin() + 1, operands.end(), is_first);
  return call.in_place && !(is_shared && answers.workspace_of != nullptr);
}

// The margin, the layout of the weights and, of classes that are not all, their range, as the call's attributes; of
// flags those that are set.
std::string attributes_of(const Node& node) {
  const Margin& margin = node.margin;
  const ClassRange& range = node.range;
  return absl::StrCat(
      "margin = ", margin.m, " : i64", margin.normalize_features ? ", normalize_features = true" : "",
      margin.normalize_weights ? ", normalize_weights = true" : "", margin.linear ? ", linear_continuation = true" : "",
      node.class_major() ? ", class_major = true" : "",
      range.count > 0 ? absl::StrCat(", first_class = ", range.first, " : i64, num_classes = ", range.count, " : i64")
                      : "");
}

// The results of a call, by its own order.
std::vector<XlaOp> results_of(const Node& node, const Call& what, const Given& given = {},
                              const std::string& attributes = "") {
  const Answers& answers = answers_on(node.on_gpu);
  const std::vector<XlaOp> operands = operands_of(node, what, given);
  std::vector<Shape> shapes;
  for (const char* const name : what.results) {
    if (name == nullptr) break;
    const Array array = kArrays[number_of(name)].in_layout(node.class_major());
    shapes.push_back(dense(type_of(array, node.real()), shape_in(array, node.sizes).dim_sizes()));
  }
  const size_t count = shapes.size();
  if (answers.workspace_of != nullptr) {
    const Sizes& sizes = node.sizes;
    const int64_t bytes = answers.workspace_of(what.kernel, sizes.rows(), sizes.depth(), sizes.classes());
    shapes.push_back(dense(::xla::U8, {std::max<int64_t>(bytes, 1)}));  // every buffer has an address
  }
  const XlaOp all =
      call(absl::StrCat(what.handler, "_", ::xla::PrimitiveType_Name(node.real())), operands, shapes,
           absl::StrCat("{", attributes_of(node), attributes, "}"), goes_in_place(what, answers, operands));
  std::vector<XlaOp> results;
  for (size_t i = 0; i < count; ++i) results.push_back(::xla::GetTupleElement(all, i));
  return results;
}

void put_out(const Node& node, const Call& call, const std::vector<XlaOp>& results) {
  for (size_t i = 0; i < results.size(); ++i) node.out(call.results[i], results[i]);
  for (const Signature::Place& place : node.signature().outputs()) {
    if (place.same >= 0) node.context->SetOutput(place.index, node.context->Input(place.same));
  }
}

// A block of classes, as its call sees it: the first of them is class 0, and a target that is none of them is the class
// behind the last. For on a GPU first_class is in the device's memory, where no handler reads it.
struct Block {
  explicit Block(const Node& node)
      : fits(is_first(node.in("first_class"), node.sizes.classes(), std::numeric_limits<int64_t>::max())),
        first(to_double(node.in("first_class"))) {
    const Targets targets = node.targets_of_block();
    labels = where(targets.here, targets.column, where(targets.none, -1, number(targets.column, targets.classes)));
  }

  // NaN if the first class is none.
  XlaOp if_it_fits(XlaOp array) const { return where(fits, array, std::numeric_limits<double>::quiet_NaN()); }

  XlaOp fits;    // [], PRED
  XlaOp first;   // [], F64
  XlaOp labels;  // [N], S32, in the block; -1 without a target
};

// [5, N] sums whose predicted classes count from another one.
XlaOp shifted(XlaOp sums, int64_t rows, XlaOp by) {
  Sums<Rows> all = hlo::sums_of(sums, rows);
  all.predicted = all.predicted + Rows(by);
  return hlo::matrix_of(all, rows);
}

}  // namespace

absl::Status write_call(const Node& node, const Call& call) {
  put_out(node, call, results_of(node, call));
  return absl::Status();
}

absl::Status write_sums(const Node& node) {
  const Block block(node);
  const int64_t rows = node.sizes.rows();
  const XlaOp before = shifted(node.in("sums_before"), rows, -block.first);
  const std::vector<XlaOp> sums = results_of(node, kSumsCall, {{"sums", before}, {"labels", block.labels}});
  put_out(node, kSumsCall, {block.if_it_fits(shifted(sums[0], rows, block.first))});
  return absl::Status();
}

absl::Status write_products_grad(const Node& node) {
  const Block block(node);
  const XlaOp normalizer = block.if_it_fits(node.in("normalizer"));
  put_out(node, kProductsGradCall,
          results_of(node, kProductsGradCall, {{"labels", block.labels}, {"normalizer", normalizer}}));
  return absl::Status();
}

absl::Status write_bias_grad(const Node& node) {
  const Block block(node);
  const std::vector<XlaOp> results = results_of(node, kBiasGradCall, {{"labels", block.labels}});
  put_out(node, kBiasGradCall, {block.if_it_fits(results[0])});
  return absl::Status();
}

absl::Status write_finish(const Node& node, int64_t depth) {
  put_out(node, kFinishCall, results_of(node, kFinishCall, {}, absl::StrCat(", depth = ", depth, " : i64")));
  return absl::Status();
}

absl::Status write_first_column(const Node& node, XlaOp* first) {
  if (node.sizes.block() > node.sizes.classes())
    return check_first("first_column", 0, node.sizes.block(), node.sizes.classes());
  const std::string attributes =
      absl::StrCat("{count = ", node.sizes.block(), " : i64, width = ", node.sizes.classes(), " : i64}");
  *first = ::xla::GetTupleElement(
      call(kFirstColumnHandler, {node.in("first_column")}, {dense(::xla::S64, {})}, attributes, /*in_place=*/false), 0);
  return absl::Status();
}

}  // namespace lsoftmax

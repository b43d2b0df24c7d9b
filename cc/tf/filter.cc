// The gradient of the fused loss through the classes that matter to it (core/filter.h), on the CPU. TensorFlow
// multiplies the columns that are taken; where none is to be left out, or on a GPU, these ops hand on what they are
// given, the same buffers, and the products are those of all classes.
//
//   KeptClasses     kept = the classes j with |products_grad[i, j]| > limits[i] factors[j] in some row i
//   TakeColumns     block[:, k] = matrix[:, columns[k]]
//   SpreadColumns   new_matrix[:, columns[k]] = block[:, k], 0 in the other columns
//
// with rows for columns, block[k, :] and matrix[columns[k], :], if the matrix is class-major.
//
// Not tf.gather and a scatter: along the second dimension TensorFlow has no scatter, and without anything to leave out
// they would copy all of it. Not tf.cond: these ops say under XLA, too, where no size may depend on data, that nothing
// is left out, and a graph that is traced for one may be compiled by the other.
#include <type_traits>

#include "core/kept.h"
#include "tf/register.h"

namespace lsoftmax {
namespace {

REGISTER_OP("LsoftmaxKeptClasses")
    .Input("products_grad: T")
    .Input("factors: Twide")
    .Input("limits: Twide")
    .Output("kept: int64")
    .Attr("most: int >= 0")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("Twide: {float, double} = DT_FLOAT")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
The classes that matter to the gradients that come through the products.

products_grad: [N, C], of LsoftmaxLoss.
factors: [C], the class_factors of LsoftmaxLoss, or [0] for 1 in every class.
limits: [N], what an entry of each row and a class of factor 1 has to exceed, in size, to matter. A NaN does.
most: how many classes are worth leaving out the others for.
kept: [B], ascending, class 0 where none matters; [0] for all: they are more than `most`, or not worth counting, or it
  is computed on a GPU or by XLA.
)doc");

REGISTER_OP("LsoftmaxTakeColumns")
    .Input("matrix: T")
    .Input("columns: int64")
    .Output("block: T")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
Some columns of a matrix, or some rows of one that is class-major.

matrix: [D, C]; or [C, D] if class_major.
class_major: whether what is taken are rows.
columns: [B], each in [0, C), or [0] for all C, in the same buffer; on a GPU [0]. Under XLA, where nothing can raise an
  error, another number makes NaNs.
block: [D, B]; or [B, D] if class_major.
)doc");

REGISTER_OP("LsoftmaxSpreadColumns")
    .Input("block: T")
    .Input("columns: int64")
    .Input("matrix: T")
    .Output("new_matrix: T")
    .Attr("class_major: bool = false")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn(infer_shapes)
    .Doc(R"doc(
A matrix that is zero but in some columns, or in some rows if it is class-major: the gradient of LsoftmaxTakeColumns.

block: [D, B]; or [B, D] if class_major.
class_major: whether what is given are rows.
columns: [B], each in [0, C), all different, or [0] for the first B; on a GPU [0], and B = C. Under XLA, where nothing
  can raise an error, another number makes NaNs.
matrix: [D, C]; or [C, D] if class_major. Only the shape is taken.
new_matrix: [D, C] as `matrix`; `block`, the same buffer, if these are all columns.
)doc");

// Whether classes are left out on this back end.
template <typename Backend>
constexpr bool kFilters = std::is_same_v<Backend, Cpu>;

// The op's own copy of the columns (an array may change between the check and the use), each in [0, classes).
absl::Status read_columns(const Tensor& tensor, int64_t classes, std::vector<int64_t>* columns) {
  columns->assign(data_of<int64_t>(tensor), data_of<int64_t>(tensor) + tensor.NumElements());
  const int64_t bad = first_bad_column(*columns, classes);
  return status_of(bad < 0 ? "" : about_bad_column(bad, (*columns)[bad], classes));
}

// What the ops have in common: inputs of the right shapes, and one output.
class ShapedOp : public OpKernel {
 public:
  explicit ShapedOp(OpKernelConstruction* construction) : OpKernel(construction), signature_(*this, construction) {}

 protected:
  absl::Status allocate(OpKernelContext* context, const Sizes& sizes, Tensor** output) const {
    return context->allocate_output(0, shape_in(signature_.outputs()[0].array, sizes), output);
  }

  const Signature signature_;
};

template <typename Backend, typename T>
class KeptClassesOp : public ShapedOp {
 public:
  explicit KeptClassesOp(OpKernelConstruction* construction) : ShapedOp(construction) {
    OP_REQUIRES_OK(construction, check_wide(construction, "limits"));
    OP_REQUIRES_OK(construction, construction->GetAttr("most", &most_));
  }

  void Compute(OpKernelContext* context) override {
    Sizes sizes;
    OP_REQUIRES_OK(context, signature_.check(context, &sizes));
    std::vector<int64_t> kept;
    if constexpr (kFilters<Backend>) {
      using Wide = Real<Core<T>>;
      FilterArguments<Core<T>> args;
      args.rows = sizes.rows();
      args.classes = sizes.classes();
      args.products_grad = data_of<Core<T>>(context->input(0));
      if (context->input(1).NumElements() > 0) args.factors = data_of<Wide>(context->input(1));
      args.limits = data_of<Wide>(context->input(2));
      kept = kept_classes(args, most_, Cpu::over(context));
    }
    Tensor* output = nullptr;
    OP_REQUIRES_OK(context, context->allocate_output(0, {static_cast<int64_t>(kept.size())}, &output));
    std::copy(kept.begin(), kept.end(), static_cast<int64_t*>(output->data()));
  }

 private:
  int64_t most_ = 0;
};

template <typename Backend, typename T>
class TakeColumnsOp : public ShapedOp {
 public:
  using ShapedOp::ShapedOp;

  void Compute(OpKernelContext* context) override {
    Sizes sizes;
    OP_REQUIRES_OK(context, signature_.check(context, &sizes));
    const Tensor &matrix = context->input(0), &given = context->input(1);
    if (given.NumElements() == 0) return context->set_output(0, matrix);
    if constexpr (kFilters<Backend>) {
      std::vector<int64_t> columns;
      OP_REQUIRES_OK(context, read_columns(given, sizes.classes(), &columns));
      Tensor* block = nullptr;
      OP_REQUIRES_OK(context, allocate(context, sizes, &block));
      const auto* const from = data_of<Core<T>>(matrix);
      auto* const to = static_cast<Core<T>*>(block->data());
      signature_.class_major() ? take_rows(from, sizes.depth(), columns, to, Cpu::over(context))
                               : take_columns(from, sizes.depth(), sizes.classes(), columns, to, Cpu::over(context));
    } else {
      context->SetStatus(status_of(about_columns_on_gpu(given.NumElements())));
    }
  }
};

template <typename Backend, typename T>
class SpreadColumnsOp : public ShapedOp {
 public:
  using ShapedOp::ShapedOp;

  void Compute(OpKernelContext* context) override {
    Sizes sizes;
    OP_REQUIRES_OK(context, signature_.check(context, &sizes));
    const Tensor &block = context->input(0), &given = context->input(1);
    const int64_t width = sizes.block(), classes = sizes.classes();
    if (given.NumElements() == 0 && width == classes) return context->set_output(0, block);
    if constexpr (kFilters<Backend>) {
      std::vector<int64_t> columns;
      OP_REQUIRES_OK(context, given.NumElements() > 0 ? read_columns(given, classes, &columns)
                                                      : check_first("columns", 0, width, classes));
      for (int64_t c = 0; given.NumElements() == 0 && c < width; ++c) columns.push_back(c);
      Tensor* matrix = nullptr;
      OP_REQUIRES_OK(context, allocate(context, sizes, &matrix));
      const auto* const from = data_of<Core<T>>(block);
      auto* const to = static_cast<Core<T>*>(matrix->data());
      signature_.class_major() ? spread_rows(from, sizes.depth(), classes, columns, to, Cpu::over(context))
                               : spread_columns(from, sizes.depth(), classes, columns, to, Cpu::over(context));
    } else {
      context->SetStatus(status_of(about_columns_on_gpu(width)));
    }
  }
};

LSOFTMAX_REGISTER_KERNELS("LsoftmaxKeptClasses", KeptClassesOp, .HostMemory("kept"));
LSOFTMAX_REGISTER_KERNELS("LsoftmaxTakeColumns", TakeColumnsOp, .HostMemory("columns"));
LSOFTMAX_REGISTER_KERNELS("LsoftmaxSpreadColumns", SpreadColumnsOp, .HostMemory("columns"));

}  // namespace
}  // namespace lsoftmax

// lsoftmax_op._core: the row kernels of the core on NumPy arrays.
//
// The Python side (arrays.py) has checked shapes, dtypes and values, and made every array dense; here they are
// checked only as far as memory safety asks. Arrays called `..._inout` are changed in place. The GIL is released
// while a kernel runs.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "core/groups.h"
#include "core/margin.h"
#include "core/rows.h"
#include "core/validate.h"
#include "python/parallel.h"

namespace py = pybind11;

namespace lsoftmax {
namespace {

using Float64s = py::array_t<double, py::array::c_style>;

// Cycles, roughly: one entry of a strided weight column, and one target logit.
constexpr int64_t kColumnCost = 8;
constexpr int64_t kTargetCost = 200;

std::string dtype_name(const py::array& array) { return py::str(array.dtype().attr("name")); }

// Calls work(T{}) with the core's type for the data type of `array`.
template <typename Work>
void dispatch(const py::array& array, const Work& work) {
  const std::string name = dtype_name(array);
  if (name == "float32") return work(float{});
  if (name == "float64") return work(double{});
  if (name == "float16") return work(float16{});
  if (name == "bfloat16") return work(bfloat16{});
  throw py::type_error("expected float16, bfloat16, float32 or float64, got " + name);
}

void require(bool condition, const char* message) {
  if (!condition) throw py::value_error(message);
}

void require_dense(const py::array& array, const py::array& like, int64_t ndim) {
  require(array.ndim() == ndim && (array.flags() & py::array::c_style), "expected a dense array of that rank");
  require(dtype_name(array) == dtype_name(like), "expected arrays of one dtype");
}

Labels labels_of(const py::array& labels, int64_t rows, int64_t classes) {
  require(labels.ndim() == 1 && labels.shape(0) == rows && (labels.flags() & py::array::c_style),
          "labels: expected a dense vector, one for each row");
  const std::string name = dtype_name(labels);
  require(name == "int32" || name == "int64", "labels: expected int32 or int64");
  const Labels view = {labels.data(), name == "int64"};
  const int64_t bad = first_bad_label(view, rows, classes);
  if (bad >= 0) {
    throw py::value_error("labels: expected values in [0, " + std::to_string(classes) +
                          "), or -1 for a row without a target, got labels[" + std::to_string(bad) +
                          "] = " + std::to_string(label_of(view, bad)));
  }
  return view;
}

double* geometry_of(Float64s& geometry, int64_t rows) {
  require(geometry.ndim() == 2 && geometry.shape(0) == 3 && geometry.shape(1) == rows,
          "geometry: expected shape [3, N]");
  return geometry.mutable_data();
}

Float64s new_geometry(int64_t rows) { return Float64s({int64_t{3}, rows}); }

void require_margin(int margin) {
  require(1 <= margin && margin <= kMaxMargin, "margin: expected an integer from 1 to 64");
}

// The arguments that features [N, D], weights [D, C] and labels [N] make.
template <typename T>
Arguments<T> arguments_of(const py::array& features, const py::array& weights, const py::array& labels) {
  require_dense(features, features, 2);
  require_dense(weights, features, 2);
  require(features.shape(1) == weights.shape(0), "weights: expected one row for each feature");
  Arguments<T> args;
  args.rows = features.shape(0);
  args.depth = features.shape(1);
  args.classes = weights.shape(1);
  args.features = static_cast<const T*>(features.data());
  args.weights = static_cast<const T*>(weights.data());
  args.labels = labels_of(labels, args.rows, args.classes);
  return args;
}

// The arguments that logits (or their gradient) [N, C] and labels [N] make.
template <typename T>
Arguments<T> arguments_of(const py::array& logits, const py::array& labels, int margin) {
  require_dense(logits, logits, 2);
  require_margin(margin);
  Arguments<T> args;
  args.rows = logits.shape(0);
  args.classes = logits.shape(1);
  args.margin = margin;
  args.labels = labels_of(labels, args.rows, args.classes);
  return args;
}

template <typename T>
using RowKernel = void (*)(const Arguments<T>&, int64_t, int64_t);

template <typename T>
void run(RowKernel<T> kernel, const Arguments<T>& args, int64_t cost, int threads) {
  const py::gil_scoped_release release;
  parallel_for(args.rows, cost, threads, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

Float64s target_geometry(const py::array& features, const py::array& weights, const py::array& labels, int threads) {
  Float64s geometry;
  dispatch(features, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args = arguments_of<T>(features, weights, labels);
    geometry = new_geometry(args.rows);
    args.geometry = geometry.mutable_data();
    run<T>(row_kernels<T>().geometry, args, kColumnCost * args.depth, threads);
  });
  return geometry;
}

void logits(py::array logits_inout, const py::array& labels, Float64s geometry, double lam, int margin, int threads) {
  dispatch(logits_inout, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args = arguments_of<T>(logits_inout, labels, margin);
    args.geometry = geometry_of(geometry, args.rows);
    args.lambda = &lam;
    args.logits = static_cast<T*>(logits_inout.mutable_data());
    run<T>(row_kernels<T>().logits, args, kTargetCost, threads);
  });
}

Float64s logits_grad(py::array grad_inout, const py::array& labels, Float64s geometry, double lam, int margin,
                     int threads) {
  Float64s geometry_grad;
  dispatch(grad_inout, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args = arguments_of<T>(grad_inout, labels, margin);
    geometry_grad = new_geometry(args.rows);
    args.geometry = geometry_of(geometry, args.rows);
    args.geometry_grad = geometry_grad.mutable_data();
    args.lambda = &lam;
    args.logits_grad = static_cast<T*>(grad_inout.mutable_data());
    run<T>(row_kernels<T>().logits_grad, args, kTargetCost, threads);
  });
  return geometry_grad;
}

void features_grad(py::array grad_inout, const py::array& features, const py::array& weights, const py::array& labels,
                   Float64s geometry_grad, int threads) {
  dispatch(features, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args = arguments_of<T>(features, weights, labels);
    require_dense(grad_inout, features, 2);
    require(grad_inout.shape(0) == args.rows && grad_inout.shape(1) == args.depth,
            "grad: expected the shape of features");
    args.geometry_grad = geometry_of(geometry_grad, args.rows);
    args.features_grad = static_cast<T*>(grad_inout.mutable_data());
    run<T>(row_kernels<T>().features_grad, args, kColumnCost * args.depth, threads);
  });
}

void weights_grad(py::array grad_inout, const py::array& features, const py::array& weights, const py::array& labels,
                  Float64s geometry_grad, int threads) {
  dispatch(features, [&](auto zero) {
    using T = decltype(zero);
    Arguments<T> args = arguments_of<T>(features, weights, labels);
    require_dense(grad_inout, features, 2);
    require(grad_inout.shape(0) == args.depth && grad_inout.shape(1) == args.classes,
            "grad: expected the shape of weights");
    args.geometry_grad = geometry_of(geometry_grad, args.rows);
    args.weights_grad = static_cast<T*>(grad_inout.mutable_data());
    const py::gil_scoped_release release;
    const RowGrouping grouping(args.labels, args.rows);
    const Groups groups = grouping.groups();
    parallel_for(args.depth, kColumnCost * args.rows, threads,
                 [&](int64_t begin, int64_t end) { row_kernels<T>().weights_grad(args, groups, begin, end); });
  });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The row kernels of lsoftmax_op on NumPy arrays; lsoftmax_op.arrays is the door to them.";
  module.def("target_geometry", target_geometry, py::arg("features"), py::arg("weights"), py::arg("labels"),
             py::arg("threads"));
  module.def("logits", logits, py::arg("logits_inout"), py::arg("labels"), py::arg("geometry"), py::arg("lam"),
             py::arg("margin"), py::arg("threads"));
  module.def("logits_grad", logits_grad, py::arg("grad_inout"), py::arg("labels"), py::arg("geometry"), py::arg("lam"),
             py::arg("margin"), py::arg("threads"));
  module.def("features_grad", features_grad, py::arg("grad_inout"), py::arg("features"), py::arg("weights"),
             py::arg("labels"), py::arg("geometry_grad"), py::arg("threads"));
  module.def("weights_grad", weights_grad, py::arg("grad_inout"), py::arg("features"), py::arg("weights"),
             py::arg("labels"), py::arg("geometry_grad"), py::arg("threads"));
  module.def("cpu_variant", cpu_variant);
}

}  // namespace lsoftmax

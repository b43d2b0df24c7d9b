// The kernels of one backend as a Python module: a call in, no result out.
//
// A call names its arrays by their addresses, as the core's own arguments do; who makes it (lsoftmax_op/arrays.py)
// answers for their memory, shapes, dtypes and values. The GIL is released while a kernel runs, on a copy of the call.
#ifndef LSOFTMAX_PYTHON_BINDINGS_H_
#define LSOFTMAX_PYTHON_BINDINGS_H_

#include <pybind11/pybind11.h>
#include <stdint.h>

#include <string>

#include "core/arguments.h"
#include "core/half.h"
#include "core/margin.h"

namespace lsoftmax {

// Arguments<T> before its data type is known.
struct Call {
  std::string dtype;
  int64_t rows = 0, depth = 0, classes = 0, first_class = 0;
  int margin = 1;
  bool wide_labels = false;
  uintptr_t features = 0, weights = 0, bias = 0, labels = 0, lam = 0, geometry = 0, geometry_grad = 0, logits = 0,
            logits_grad = 0, features_grad = 0, weights_grad = 0, bias_grad = 0, cos_theta = 0, segment = 0,
            products = 0, target_weights = 0, loss = 0, loss_grad = 0, target_grad = 0, sums = 0, normalizer = 0,
            grad_unit = 0, predicted = 0, workspace = 0;

  template <typename T>
  Arguments<T> as() const {
    Arguments<T> args;
    args.rows = rows;
    args.depth = depth;
    args.classes = classes;
    args.margin = margin;
    args.first_class = first_class;
    args.features = reinterpret_cast<const T*>(features);
    args.weights = reinterpret_cast<const T*>(weights);
    args.bias = reinterpret_cast<const T*>(bias);
    args.labels = labels_of();
    args.lambda = reinterpret_cast<const double*>(lam);
    args.geometry = reinterpret_cast<double*>(geometry);
    args.geometry_grad = reinterpret_cast<double*>(geometry_grad);
    args.logits = reinterpret_cast<T*>(logits);
    args.logits_grad = reinterpret_cast<T*>(logits_grad);
    args.features_grad = reinterpret_cast<T*>(features_grad);
    args.weights_grad = reinterpret_cast<T*>(weights_grad);
    args.cos_theta = reinterpret_cast<double*>(cos_theta);
    args.segment = reinterpret_cast<int32_t*>(segment);
    args.bias_grad = reinterpret_cast<T*>(bias_grad);
    args.products = reinterpret_cast<const T*>(products);
    args.target_weights = reinterpret_cast<T*>(target_weights);
    args.loss = reinterpret_cast<T*>(loss);
    args.loss_grad = reinterpret_cast<const T*>(loss_grad);
    args.target_grad = reinterpret_cast<double*>(target_grad);
    args.grad_unit = reinterpret_cast<float*>(grad_unit);
    args.sums = reinterpret_cast<double*>(sums);
    args.normalizer = reinterpret_cast<double*>(normalizer);
    args.predicted = reinterpret_cast<int64_t*>(predicted);
    return args;
  }

  Labels labels_of() const { return {reinterpret_cast<const void*>(labels), wide_labels}; }
};

// Calls work(T{}) with the core's type for the data type of that name.
template <typename Work>
void dispatch(const std::string& dtype, const Work& work) {
  if (dtype == "float32") return work(float{});
  if (dtype == "float64") return work(double{});
  if (dtype == "float16") return work(float16{});
  if (dtype == "bfloat16") return work(bfloat16{});
  throw pybind11::type_error("dtype: expected float16, bfloat16, float32 or float64, got " + dtype);
}

// Backend::Where is where a kernel runs: a number of threads, or a stream. Each of its functions is a template over the
// data type and takes (call, arguments, where).
template <typename Backend>
void define_kernels(pybind11::module_& module) {
  namespace py = pybind11;
  using Where = typename Backend::Where;

  py::class_<Call>(module, "Call", "Sizes and addresses of the arrays of one kernel call.", py::module_local())
      .def(py::init<>())
      .def_readwrite("dtype", &Call::dtype)
      .def_readwrite("rows", &Call::rows)
      .def_readwrite("depth", &Call::depth)
      .def_readwrite("classes", &Call::classes)
      .def_readwrite("first_class", &Call::first_class)
      .def_readwrite("margin", &Call::margin)
      .def_readwrite("wide_labels", &Call::wide_labels)
      .def_readwrite("features", &Call::features)
      .def_readwrite("weights", &Call::weights)
      .def_readwrite("bias", &Call::bias)
      .def_readwrite("labels", &Call::labels)
      .def_readwrite("lam", &Call::lam)
      .def_readwrite("geometry", &Call::geometry)
      .def_readwrite("geometry_grad", &Call::geometry_grad)
      .def_readwrite("logits", &Call::logits)
      .def_readwrite("logits_grad", &Call::logits_grad)
      .def_readwrite("features_grad", &Call::features_grad)
      .def_readwrite("weights_grad", &Call::weights_grad)
      .def_readwrite("bias_grad", &Call::bias_grad)
      .def_readwrite("cos_theta", &Call::cos_theta)
      .def_readwrite("segment", &Call::segment)
      .def_readwrite("products", &Call::products)
      .def_readwrite("target_weights", &Call::target_weights)
      .def_readwrite("loss", &Call::loss)
      .def_readwrite("loss_grad", &Call::loss_grad)
      .def_readwrite("target_grad", &Call::target_grad)
      .def_readwrite("grad_unit", &Call::grad_unit)
      .def_readwrite("sums", &Call::sums)
      .def_readwrite("normalizer", &Call::normalizer)
      .def_readwrite("predicted", &Call::predicted)
      .def_readwrite("workspace", &Call::workspace);

#define LSOFTMAX_DEFINE(KERNEL)                                   \
  module.def(                                                     \
      #KERNEL,                                                    \
      [](const Call& shared, Where where) {                       \
        const Call call = shared;                                 \
        const py::gil_scoped_release release;                     \
        dispatch(call.dtype, [&](auto zero) {                     \
          using T = decltype(zero);                               \
          Backend::template KERNEL<T>(call, call.as<T>(), where); \
        });                                                       \
      },                                                          \
      py::arg("call"), py::arg("where"))
  LSOFTMAX_DEFINE(geometry);
  LSOFTMAX_DEFINE(logits);
  LSOFTMAX_DEFINE(logits_grad);
  LSOFTMAX_DEFINE(angles);
  LSOFTMAX_DEFINE(features_grad);
  LSOFTMAX_DEFINE(weights_grad);
  LSOFTMAX_DEFINE(loss);
  LSOFTMAX_DEFINE(sums);
  LSOFTMAX_DEFINE(finish);
  LSOFTMAX_DEFINE(products_grad);
  LSOFTMAX_DEFINE(bias_grad);
#undef LSOFTMAX_DEFINE

  module.def("weights_grad_workspace", &Backend::weights_grad_workspace, py::arg("rows"), py::arg("depth"),
             "Bytes that `Call.workspace` of weights_grad needs.");
  module.def("loss_workspace", &Backend::loss_workspace, py::arg("rows"), py::arg("classes"),
             "Bytes that `Call.workspace` of loss and sums needs.");
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_BINDINGS_H_

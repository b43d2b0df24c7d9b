// The kernels of one backend as a Python module: a call in, no result out.
//
// A call names its arrays by their addresses, as the core's own arguments do; who makes it (lsoftmax_op/_array_layer.py)
// answers for their memory, shapes, dtypes and values. The GIL is released while a kernel runs, on a copy of the call.
#ifndef LSOFTMAX_PYTHON_BINDINGS_H_
#define LSOFTMAX_PYTHON_BINDINGS_H_

#include <pybind11/pybind11.h>
#include <stdint.h>

#include <string>

#include "core/arrays.h"
#include "core/half.h"
#include "core/margin.h"

namespace lsoftmax {

// Arguments<T> before its data type is known.
struct Call {
  std::string dtype;
  int64_t rows = 0, depth = 0, classes = 0, first_class = 0, num_classes = 0;
  Margin margin;
  bool wide_labels = false, class_major = false;
  uintptr_t workspace = 0;
#define LSOFTMAX_DECLARE(TYPE, NAME, SHAPE) uintptr_t NAME = 0;
  LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_DECLARE)
#undef LSOFTMAX_DECLARE

  template <typename T>
  Arguments<T> as() const {
    Arguments<T> args;
    args.rows = rows;
    args.depth = depth;
    args.classes = classes;
    args.margin = margin;
    args.range = {first_class, num_classes};
    args.class_major = class_major;
    args.workspace = reinterpret_cast<void*>(workspace);
#define LSOFTMAX_SET(TYPE, NAME, SHAPE) point(&args.NAME, reinterpret_cast<void*>(NAME));
    LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_SET)
#undef LSOFTMAX_SET
    args.labels.wide = wide_labels;
    return args;
  }
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

// Backend::Where is where a kernel runs: a number of threads, or a stream. Backend::run<kernel>(arguments, where) runs
// it.
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
      .def_readwrite("num_classes", &Call::num_classes)
      .def_readwrite("class_major", &Call::class_major)
      .def_property(
          "margin", [](const Call& call) { return call.margin.m; }, [](Call& call, int m) { call.margin.m = m; })
      .def_property(
          "normalize_features", [](const Call& call) { return call.margin.normalize_features; },
          [](Call& call, bool does) { call.margin.normalize_features = does; })
      .def_property(
          "normalize_weights", [](const Call& call) { return call.margin.normalize_weights; },
          [](Call& call, bool does) { call.margin.normalize_weights = does; })
      .def_property(
          "linear_continuation", [](const Call& call) { return call.margin.linear; },
          [](Call& call, bool does) { call.margin.linear = does; })
      .def_readwrite("wide_labels", &Call::wide_labels)
#define LSOFTMAX_DEFINE(TYPE, NAME, SHAPE) .def_readwrite(#NAME, &Call::NAME)
          LSOFTMAX_FOR_EACH_ARRAY(LSOFTMAX_DEFINE)
#undef LSOFTMAX_DEFINE
      .def_readwrite("workspace", &Call::workspace);

#define LSOFTMAX_DEFINE(KERNEL)                                                                                \
  module.def(                                                                                                  \
      #KERNEL,                                                                                                 \
      [](const Call& shared, Where where) {                                                                    \
        const Call call = shared;                                                                              \
        const py::gil_scoped_release release;                                                                  \
        dispatch(call.dtype,                                                                                   \
                 [&](auto zero) { Backend::template run<Kernel::KERNEL>(call.as<decltype(zero)>(), where); }); \
      },                                                                                                       \
      py::arg("call"), py::arg("where"));                                                                      \
  module.def(                                                                                                  \
      #KERNEL "_workspace",                                                                                    \
      [](int64_t rows, int64_t depth, int64_t classes) {                                                       \
        return Backend::workspace_of(Kernel::KERNEL, rows, depth, classes);                                    \
      },                                                                                                       \
      py::arg("rows"), py::arg("depth"), py::arg("classes"), "Bytes that `Call.workspace` of " #KERNEL " needs.");
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_DEFINE)
#undef LSOFTMAX_DEFINE
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_PYTHON_BINDINGS_H_

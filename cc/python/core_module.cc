// lsoftmax_op._core: the CPU kernels; `where` is the number of threads, at most.
#include "core/batch.h"
#include "core/validate.h"
#include "python/bindings.h"
#include "python/parallel.h"

namespace lsoftmax {
namespace {

struct Cpu {
  using Where = int;

  template <Kernel kernel, typename T>
  static void run(const Arguments<T>& args, int threads) {
    run_on_batch<kernel>(args, over(threads));
  }
  static int64_t workspace_of(Kernel, int64_t, int64_t, int64_t) { return 0; }
};

int64_t first_bad_label_of(const Call& call) {
  return first_bad_label(call.as<float>().labels, call.rows, call.classes);
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The CPU kernels of lsoftmax_op; lsoftmax_op.arrays is the door to them.";
  define_kernels<Cpu>(module);
  module.def("first_bad_label", first_bad_label_of, pybind11::arg("call"),
             "The first row whose label is neither -1 nor in [0, classes), or -1.");
  module.def("cpu_variant", cpu_variant);
  module.attr("max_margin") = kMaxMargin;
}

}  // namespace lsoftmax

// lsoftmax_op._core: the CPU kernels; `where` is the number of threads, at most.
#include "core/batch.h"
#include "core/validate.h"
#include "python/bindings.h"
#include "python/parallel.h"

namespace lsoftmax {
namespace {

struct Cpu {
  using Where = int;

#define LSOFTMAX_RUN(KERNEL)                                               \
  template <typename T>                                                    \
  static void KERNEL(const Call&, const Arguments<T>& args, int threads) { \
    KERNEL##_of_batch(args, over(threads));                                \
  }
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_RUN)
#undef LSOFTMAX_RUN
  static int64_t weights_grad_workspace(int64_t, int64_t) { return 0; }
  static int64_t loss_workspace(int64_t, int64_t) { return 0; }
};

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The CPU kernels of lsoftmax_op; lsoftmax_op.arrays is the door to them.";
  define_kernels<Cpu>(module);
  module.def(
      "first_bad_label", [](const Call& call) { return first_bad_label(call.labels_of(), call.rows, call.classes); },
      pybind11::arg("call"), "The first row whose label is neither -1 nor in [0, classes), or -1.");
  module.def("cpu_variant", cpu_variant);
}

}  // namespace lsoftmax

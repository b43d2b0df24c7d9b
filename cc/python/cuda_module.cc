// lsoftmax_op._cuda: the CUDA kernels; `where` is a stream, as an integer. Compiled over the kernels that run on the
// CPU (cuda/testing) it is the tests' module _cuda_on_cpu.
#include <stdexcept>

#include "cuda/kernels.h"
#include "python/bindings.h"

namespace lsoftmax {
namespace {

void require_success(cuda::Status status) {
  if (status != 0) throw std::runtime_error(std::string("CUDA: ") + cuda::message_of(status));
}

struct Cuda {
  using Where = uintptr_t;

#define LSOFTMAX_RUN(KERNEL)                                                     \
  template <typename T>                                                          \
  static void KERNEL(const Call&, const Arguments<T>& args, uintptr_t stream) {  \
    require_success(cuda::KERNEL(args, reinterpret_cast<cuda::Stream>(stream))); \
  }
  LSOFTMAX_RUN(geometry)
  LSOFTMAX_RUN(logits)
  LSOFTMAX_RUN(logits_grad)
  LSOFTMAX_RUN(angles)
  LSOFTMAX_RUN(features_grad)
  LSOFTMAX_RUN(finish)
  LSOFTMAX_RUN(products_grad)
  LSOFTMAX_RUN(bias_grad)
#undef LSOFTMAX_RUN

#define LSOFTMAX_RUN(KERNEL)                                                                                  \
  template <typename T>                                                                                       \
  static void KERNEL(const Call& call, const Arguments<T>& args, uintptr_t stream) {                          \
    require_success(                                                                                          \
        cuda::KERNEL(args, reinterpret_cast<void*>(call.workspace), reinterpret_cast<cuda::Stream>(stream))); \
  }
  LSOFTMAX_RUN(weights_grad)
  LSOFTMAX_RUN(loss)
  LSOFTMAX_RUN(sums)
#undef LSOFTMAX_RUN

  static int64_t loss_workspace(int64_t rows, int64_t classes) { return cuda::loss_workspace(rows, classes); }
  static int64_t weights_grad_workspace(int64_t rows, int64_t depth) {
    return cuda::weights_grad_workspace(rows, depth);
  }
};

}  // namespace

PYBIND11_MODULE(LSOFTMAX_MODULE, module) {
  module.doc() = "The CUDA kernels of lsoftmax_op; lsoftmax_op.arrays is the door to them.";
  define_kernels<Cuda>(module);
}

}  // namespace lsoftmax

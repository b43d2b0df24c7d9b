// lsoftmax_op._cuda: the CUDA kernels; `where` is a stream, as an integer. Compiled over the kernels that run on the
// CPU (cuda/testing) it is the tests' module _cuda_on_cpu.
#include <stdexcept>

#include "cuda/kernels.h"
#include "python/bindings.h"

namespace lsoftmax {
namespace {

struct Cuda {
  using Where = uintptr_t;

  template <Kernel kernel, typename T>
  static void run(const Arguments<T>& args, uintptr_t stream) {
    const cuda::Status status = cuda::run<kernel>(args, reinterpret_cast<cuda::Stream>(stream));
    if (status != 0) throw std::runtime_error(std::string("CUDA: ") + cuda::message_of(status));
  }
  static int64_t workspace_of(Kernel kernel, int64_t rows, int64_t depth, int64_t classes) {
    return cuda::workspace_of(kernel, rows, depth, classes);
  }
};

}  // namespace

PYBIND11_MODULE(LSOFTMAX_MODULE, module) {
  module.doc() = "The CUDA kernels of lsoftmax_op; lsoftmax_op.arrays is the door to them.";
  define_kernels<Cuda>(module);
}

}  // namespace lsoftmax

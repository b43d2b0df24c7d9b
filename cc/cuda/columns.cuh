// What margins that divide by the weights' norms do over all of the weights: core/columns.h.
#ifndef LSOFTMAX_CUDA_COLUMNS_CUH_
#define LSOFTMAX_CUDA_COLUMNS_CUH_

#include "core/arguments.h"
#include "cuda/kernels.h"

namespace lsoftmax {
namespace cuda {

// Launches what takes the part along each class's weights off weights_grad, in place, if the margin divides by their
// norms.
template <typename T>
Status take_off_radial(const Arguments<T>& args, Stream stream);

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_COLUMNS_CUH_

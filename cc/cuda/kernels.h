// The kernels of core/rows.h and core/loss.h for CUDA: the same arguments, on a stream. Needs no CUDA header.
//
// Every pointer of the arguments lies in device memory, labels and lambda too, so nothing is copied to or from the
// host. A function launches its kernels on the stream that it is given and returns at once: it allocates nothing, waits
// for nothing and calls no other stream. Sums run in a fixed order, without atomics: results are bit-identical from run
// to run. Those over features run in double; a thread adds up the exponentials of its own classes, and eight rows of a
// bias gradient, in float (of float64: in double) before they are added to the others' in double.
//
// Several kernels read the rows in the order of their labels (label_order.cuh). Each makes it for itself in its
// workspace; or `geometry` leaves it in args.label_order, if that is not null, and the others take it from there.
//
// Values that only the device knows are judged there: a label that is neither -1 nor one of all classes makes its row
// NaN, a lambda that is negative or NaN makes every row NaN, in `logits` as in `logits_grad`, `loss` and `finish`: the
// loss, its gradient and geometry_grad. `predicted` stays a class.
#ifndef LSOFTMAX_CUDA_KERNELS_H_
#define LSOFTMAX_CUDA_KERNELS_H_

#include <stdint.h>

#include "core/arguments.h"
#include "core/half.h"

namespace lsoftmax {
namespace cuda {

using Stream = void*;  // a cudaStream_t, which is a CUstream
using Status = int;    // a cudaError_t: 0 is success

// For people.
const char* message_of(Status status);

// KERNEL(args, stream) for each kernel, over all rows or classes, with the contract of rows.h and loss.h. T: float16,
// bfloat16, float, double. `finish` knows the number of classes, beyond which a label is bad, only where there is a
// bias; where there is none, `geometry` has made that row NaN.
#define LSOFTMAX_DECLARE(KERNEL) \
  template <typename T>          \
  Status KERNEL(const Arguments<T>& args, Stream stream);
LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_DECLARE)
#undef LSOFTMAX_DECLARE

template <Kernel kernel, typename T>
Status run(const Arguments<T>& args, Stream stream) {
#define LSOFTMAX_RUN(KERNEL) \
  if constexpr (kernel == Kernel::KERNEL) return KERNEL(args, stream);
  LSOFTMAX_FOR_EACH_KERNEL(LSOFTMAX_RUN)
#undef LSOFTMAX_RUN
}

// The bytes of args.workspace: device memory, 16-byte aligned, free to use until the stream has passed the kernels.
int64_t geometry_workspace(int64_t rows);
int64_t weights_grad_workspace(int64_t rows, int64_t depth);
int64_t loss_workspace(int64_t rows, int64_t classes);
inline int64_t workspace_of(Kernel kernel, int64_t rows, int64_t depth, int64_t classes) {
  const bool looks_at_targets = kernel == Kernel::geometry || kernel == Kernel::geometry_and_loss;
  const bool sums_up = kernel == Kernel::loss || kernel == Kernel::geometry_and_loss || kernel == Kernel::sums;
  if (kernel == Kernel::weights_grad || kernel == Kernel::gradients) return weights_grad_workspace(rows, depth);
  const int64_t for_geometry = looks_at_targets ? geometry_workspace(rows) : 0;
  const int64_t for_loss = sums_up ? loss_workspace(rows, classes) : 0;
  return for_geometry > for_loss ? for_geometry : for_loss;
}

// Copies within device memory.
Status copy(const void* from, void* to, int64_t bytes, Stream stream);

// The same of `rows` rows of `width` bytes, which begin `from_pitch` and `to_pitch` bytes apart, less than 2^31.
Status copy_rows(const void* from, int64_t from_pitch, void* to, int64_t to_pitch, int64_t width, int64_t rows,
                 Stream stream);

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_KERNELS_H_

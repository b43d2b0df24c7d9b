// The gradients in features, weights and bias side by side in one launch, each as in its own file: a block has one of
// three jobs. Of a small batch launches are most of the time, and blocks of one gradient leave the device idle.
// What a margin takes off the weights' gradient along the weights comes first, in a launch of its own.
#include "cuda/bias_grad.cuh"
#include "cuda/columns.cuh"
#include "cuda/features_grad.cuh"
#include "cuda/weights_grad.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

// Blocks, the longest jobs first.
struct Jobs {
  int64_t columns, classes, rows;
};

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    gradients_job_per_block(Arguments<T> args, LabelOrder order, Spans spans, Jobs jobs) {
  int64_t block = blockIdx.x;
  if (block < jobs.columns) return sum_columns<kWarps>(args, block);
  block -= jobs.columns;
  if (block < jobs.classes) return add_classes<kVector>(args, order, spans, block);
  complete_rows<kVector>(args, block - jobs.classes);
}

// Whether the bias gradient has enough blocks, or few enough rows, for blocks as small as the others'.
bool joins(int64_t rows, int64_t classes) {
  constexpr int64_t kRows = 1024, kManyClasses = 4096;
  return rows <= kRows || classes >= kManyClasses;
}

}  // namespace

template <typename T>
Status gradients(const Arguments<T>& args, Stream stream) {
  Status status = take_off_radial(args, stream);
  if (status != 0) return status;
  LabelOrder order;
  Spans spans;
  status = prepare_classes(args, &order, &spans, stream);
  if (status != 0) return status;
  const bool has_bias = args.bias_grad != nullptr, joined = has_bias && joins(args.rows, args.classes);
  const Jobs jobs = {joined ? ceil_div(args.classes, kWarp) : 0, blocks_of_classes(args), ceil_div(args.rows, kWarps)};
  const bool wide = has_wide_rows(args);
  const Status launched = launch(wide ? gradients_job_per_block<T, kWide<T>> : gradients_job_per_block<T, 1>,
                                 jobs.columns + jobs.classes + jobs.rows, 1, kBlock, stream, args, order, spans, jobs);
  return launched == 0 && has_bias && !joined ? bias_grad(args, stream) : launched;
}

#define LSOFTMAX_INSTANTIATE(T) template Status gradients<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

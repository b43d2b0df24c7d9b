// The fused loss (core/softmax.h has the formulas), with its rows in one of three mappings (loss_plan.h).
//
//   row per warp, row per block    sum up the row, finish it, write its gradient: in one kernel
//   part per block                 sums of parts of kPart classes, merged row per warp; finish, row per thread;
//                                  gradient
//
// The kernels of the last are those of a block of classes, too.
#include "cuda/loss_plan.h"

#include <math.h>

#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"
#include "cuda/logits.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kMaxBlock = 1024;
constexpr int64_t kUnknown = INT64_MAX;

// finish_row of core/target.h. A row that cannot be computed says so in each number but its predicted class. Labels are
// below `classes`.
template <typename T>
__device__ Normalizer<double> finish(const Arguments<T>& args, int64_t row, int64_t classes, const Sums<double>& sums) {
  const double lambda = *args.lam;
  const int64_t y = label_of(args.labels, row);
  if (is_good_lambda(lambda) && is_good_label(y, classes)) {
    const double bias = args.bias != nullptr && y >= 0 ? widen(args.bias[y]) : 0;
    return finish_row(args, margin_share(lambda), row, bias, sums);
  }
  args.predicted[row] = static_cast<int64_t>(sums.predicted);
  assign(args.loss[row], NAN);
  if (args.grad_unit != nullptr) args.grad_unit[row] = 1;
  args.target_grad[row] = NAN;
  store(args.geometry_grad, args.rows, row, {NAN, NAN, NAN});
  return {NAN, NAN};
}

// In shared memory, each row's first `kept` vectors. Finishing is long and serial: the block's rows go through it side
// by side, a thread each.
template <typename T>
__global__ void __launch_bounds__(kBlock) loss_row_per_warp(Arguments<T> args, int64_t kept) {
  __shared__ Partial<Real<T>> partials[kWarps];
  __shared__ Normalizer<double> normalizers[kWarps];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, thread = static_cast<int>(threadIdx.x);
  const int64_t row = row_of_warp(), to_finish = row - warp + thread;
  const Kept<T> own = {dynamic_shared<Wide<T>>() + warp * kept, kept};
  if (row < args.rows) {
    const Row<T> r(args, row);
    const Partial<Real<T>> partial = merge_in_warp(sum_of_thread(r, group_of_warp(), 0, r.vectors(), own));
    if (lane_of_warp() == 0) partials[warp] = partial;
  }
  __syncthreads();
  if (thread < kWarps && to_finish < args.rows) {
    const Row<T> r(args, to_finish);
    normalizers[thread] =
        finish(args, to_finish, args.classes, sums_of(r, 0, r.vectors(), args.first_class, partials[thread]));
  }
  __syncthreads();
  if (row >= args.rows) return;
  const Row<T> r(args, row);
  differentiate(r, group_of_warp(), 0, r.vectors(), own, normalizers[warp]);
}

template <typename T>
__global__ void __launch_bounds__(kMaxBlock) loss_row_per_block(Arguments<T> args, int64_t kept) {
  __shared__ Normalizer<double> normalizer;
  const int64_t row = blockIdx.x;
  const Row<T> r(args, row);
  const Kept<T> own = {dynamic_shared<Wide<T>>(), kept};
  const Partial<Real<T>> partial = merge_in_block(sum_of_thread(r, group_of_block(), 0, r.vectors(), own));
  if (threadIdx.x == 0) {
    normalizer = finish(args, row, args.classes, sums_of(r, 0, r.vectors(), args.first_class, partial));
  }
  __syncthreads();
  differentiate(r, group_of_block(), 0, r.vectors(), own, normalizer);
}

// The block's part of a row, as vectors [begin, end). The last part has what others leave: at most one vector more.
struct Part {
  int64_t row, begin, end;
};
template <typename T>
__device__ Part part_of_block(const Arguments<T>& args) {
  constexpr int64_t kVectors = kPart / kWide<T>;
  const unsigned parts = static_cast<unsigned>(ceil_div(args.classes, kPart));
  const int64_t row = blockIdx.x / parts, part = blockIdx.x % parts;
  const bool is_last = part + 1 == parts;
  return {row, part * kVectors, is_last ? Row<T>(args, row).vectors() : (part + 1) * kVectors};
}

// parts: [N, parts a row]
template <typename T>
__global__ void __launch_bounds__(kBlock) sums_part_per_block(Arguments<T> args, Sums<double>* parts) {
  const Part part = part_of_block(args);
  const Row<T> r(args, part.row);
  const Partial<Real<T>> partial =
      merge_in_block(sum_of_thread(r, group_of_block(), part.begin, part.end, Kept<T>{nullptr, 0}));
  if (threadIdx.x == 0) parts[blockIdx.x] = sums_of(r, part.begin, part.end, args.first_class, partial);
}

// Takes the row's parts into its sums, or where `anew` into those of no class.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    merge_row_per_warp(Arguments<T> args, const Sums<double>* parts, int64_t count, bool anew) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  Sums<double> sums = no_sums();
  for (int64_t n = lane_of_warp(); n < count; n += kWarp) sums = merge(sums, parts[row * count + n]);
  warp_first_of_largest(&sums.best, &sums.predicted);
  const Partial<double> others = merge_in_warp(Partial<double>{sums.max, sums.sum, 0});
  sums.max = others.max;
  sums.sum = others.sum;
  if (lane_of_warp() == 0) store(args, row, anew ? sums : merge(sums_of(args, row), sums));
}

template <typename T>
__global__ void __launch_bounds__(kBlock) finish_row_per_thread(Arguments<T> args, int64_t classes) {
  const int64_t row = row_of_thread();
  if (row >= args.rows) return;
  const Normalizer<double> normalizer = finish(args, row, classes, sums_of(args, row));
  args.normalizer[row] = normalizer.max;
  args.normalizer[args.rows + row] = normalizer.scale;
}

template <typename T>
__global__ void __launch_bounds__(kBlock) products_grad_part_per_block(Arguments<T> args) {
  const Part part = part_of_block(args);
  const Normalizer<double> normalizer = {args.normalizer[part.row], args.normalizer[args.rows + part.row]};
  differentiate(Row<T>(args, part.row), group_of_block(), part.begin, part.end, Kept<T>{nullptr, 0}, normalizer);
}

// In the workspace of `loss` and `sums`.
struct Workspace {
  Sums<double>* parts;  // [N, parts a row]
  double* sums;         // [4, N]
  double* normalizer;   // [2, N]
};
Workspace lay_out(void* workspace, int64_t rows, int64_t classes) {
  Sums<double>* const parts = static_cast<Sums<double>*>(workspace);
  double* const after = reinterpret_cast<double*>(parts + rows * ceil_div(classes, kPart));
  return {parts, after, after + 4 * rows};
}

template <typename T>
Status sum_up(const Arguments<T>& args, Sums<double>* parts, bool anew, Stream stream) {
  const int64_t count = ceil_div(args.classes, kPart);
  const Status status = launch(sums_part_per_block<T>, args.rows * count, 1, kBlock, stream, args, parts);
  if (status != 0) return status;
  return launch(merge_row_per_warp<T>, ceil_div(args.rows, kWarps), 1, kBlock, stream, args,
                static_cast<const Sums<double>*>(parts), count, anew);
}

template <typename T>
Status finish_rows(const Arguments<T>& args, int64_t classes, Stream stream) {
  return launch(finish_row_per_thread<T>, ceil_div(args.rows, kBlock), 1, kBlock, stream, args, classes);
}

// The bytes of shared memory that a block may have on the current device.
Status shared_memory(int64_t* bytes) {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes = most;
  return cudaGetLastError();
}

}  // namespace

int64_t loss_workspace(int64_t rows, int64_t classes) {
  constexpr int64_t kOfRow = 6 * sizeof(double), kOfPart = sizeof(Sums<double>);
  return rows * (kOfRow + kOfPart * ceil_div(classes, kPart));
}

template <typename T>
Status loss(const Arguments<T>& args, Stream stream) {
  int64_t shared = 0;
  const Status status = shared_memory(&shared);
  if (status != 0) return status;
  // A row that begins in the last entry of a vector touches the most.
  const int64_t vectors = ceil_div(args.classes + kWide<T> - 1, kWide<T>);
  const LossPlan plan = plan_loss(args.rows, args.classes, vectors, shared);
  const int64_t kept_bytes = plan.kept * static_cast<int64_t>(sizeof(Wide<T>));
  switch (plan.mapping) {
    case Mapping::kRowPerWarp:
      return launch_with_shared(loss_row_per_warp<T>, ceil_div(args.rows, kWarps), 1, plan.threads, kWarps * kept_bytes,
                                stream, args, plan.kept);
    case Mapping::kRowPerBlock:
      return launch_with_shared(loss_row_per_block<T>, args.rows, 1, plan.threads, kept_bytes, stream, args, plan.kept);
    case Mapping::kPartPerBlock:
      break;
  }
  const Workspace own = lay_out(args.workspace, args.rows, args.classes);
  Arguments<T> stages = args;
  stages.sums = own.sums;
  stages.normalizer = own.normalizer;
  const Status summed = sum_up(stages, own.parts, true, stream);
  if (summed != 0) return summed;
  const Status finished = finish_rows(stages, args.classes, stream);
  return finished != 0 ? finished : products_grad(stages, stream);
}

template <typename T>
Status geometry_and_loss(const Arguments<T>& args, Stream stream) {
  const Status status = geometry(args, stream);
  return status != 0 ? status : loss(args, stream);
}

template <typename T>
Status sums(const Arguments<T>& args, Stream stream) {
  return sum_up(args, lay_out(args.workspace, args.rows, args.classes).parts, false, stream);
}

template <typename T>
Status finish(const Arguments<T>& args, Stream stream) {
  return finish_rows(args, args.bias != nullptr ? args.classes : kUnknown, stream);
}

template <typename T>
Status products_grad(const Arguments<T>& args, Stream stream) {
  return launch(products_grad_part_per_block<T>, args.rows * ceil_div(args.classes, kPart), 1, kBlock, stream, args);
}

#define LSOFTMAX_INSTANTIATE(T)                                      \
  template Status loss<T>(const Arguments<T>&, Stream);              \
  template Status geometry_and_loss<T>(const Arguments<T>&, Stream); \
  template Status sums<T>(const Arguments<T>&, Stream);              \
  template Status finish<T>(const Arguments<T>&, Stream);            \
  template Status products_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

// The fused loss (core/softmax.h has the formulas), with its rows in one of five mappings (loss_plan.h).
//
//   row per group, row per block    the row in registers (held.cuh): sums, finish and gradient in one kernel
//   row per cluster                 in the shared memory of 1 to 16 blocks, row after row, by bulk copies (copied.cuh),
//                                   likewise; from sm_90 on
//   row in shared                   what fits of the row in shared memory (streamed.cuh), likewise; before sm_90
//   part per block                  sums of parts of kPart classes, merged row per warp; finish, row per thread;
//                                   gradient
//
// The kernels of the last are those of a block of classes, too.
#include "cuda/loss_plan.h"

#include "cuda/cluster_loss.cuh"
#include "cuda/device.cuh"
#include "cuda/finish.cuh"
#include "cuda/held.cuh"
#include "cuda/loss_device.h"
#include "cuda/streamed.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kGroupsBlock = 128;        // threads of a block of groups: what waits for its slowest row is small
template <typename T, Classes kClasses>  // a multiprocessor is to have: 64 or 80 registers a thread
constexpr int kGroupsBlocks = kIsHalf<T> && kClasses != Classes::kTerms ? 8 : 6;
constexpr int64_t kUnknown = INT64_MAX;

// Finishing is long and serial: the block's rows go through it side by side, a thread each. `log2_lanes` are those of a
// row.
template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kGroupsBlock, kGroupsBlocks<T, kClasses>)
    loss_row_per_group(const __grid_constant__ Arguments<T> args, int log2_lanes) {
  __shared__ TargetLogit<double> targets[kGroupsBlock / 2];
  __shared__ Sums<double> sums[kGroupsBlock / 2];
  __shared__ Normalizer<double> normalizers[kGroupsBlock / 2];
  __shared__ double totals_of_logits[kGroupsBlock / 2];
  __shared__ Real<T> factors[kGroupsBlock / 2];
  const int thread = static_cast<int>(threadIdx.x), lanes = 1 << log2_lanes, rows = kGroupsBlock >> log2_lanes;
  const int of_block = thread >> log2_lanes;
  const Group group = {thread & (lanes - 1), lanes};
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows, own = first + of_block, to_finish = first + thread;
  const bool finishes = thread < rows && to_finish < args.rows;
  if constexpr (kClasses == Classes::kTerms) {
    if (finishes) {
      factors[thread] = factor_of(args, to_finish);
      targets[thread] = target_logit_of<kClasses>(args, to_finish);
    }
    __syncthreads();
  }
  Span<T, kClasses> span(args, own < args.rows ? own : args.rows - 1);  // every lane takes part in shuffles
  if constexpr (kClasses == Classes::kTerms) span.of_row = factors[of_block];
  Held<T, kClasses> held(span, group);
  if (kClasses != Classes::kTerms && finishes) targets[thread] = target_logit_of<kClasses>(args, to_finish);
  held.prepare(span);
  const Real<T> largest = held.largest(span), m = largest_in_lanes(largest, lanes);
  const int place = held.place_of(span, m, largest);
  const bool smoothed = is_smoothed<kClasses>(args);
  if (smoothed) {
    const double sum = sum_in_lanes(held.total(span), lanes);
    if (group.thread == 0) totals_of_logits[of_block] = sum;
  }
  const Total total = total_in_lanes({held.sum(span, base_of(m)), place}, lanes);
  if (group.thread == 0)
    sums[of_block] = sums_of(span, m, total, args.range.first, smoothed ? totals_of_logits[of_block] : 0);
  __syncthreads();
  if (finishes) {
    const auto work = [&] {
      normalizers[thread] = finish<kClasses>(args, targets[thread], to_finish, args.classes, sums[thread]);
    };
    if constexpr (kClasses == Classes::kTerms) {
      __shared__ Registers<T> aside[kGroupsBlock / 2][kHeld<T>];
      held.stand_aside(aside[thread], work);
    } else {
      work();
    }
  }
  __syncthreads();
  // Computed anew, as registers hold the row until here, and little else.
  if (own >= args.rows) return;
  Span<T, kClasses> again(args, opaque(own));
  if constexpr (kClasses == Classes::kTerms) again.of_row = factors[of_block];
  held.differentiate(again, normalizers[of_block]);
}

template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kMaxBlock) loss_row_per_block(const __grid_constant__ Arguments<T> args) {
  __shared__ TargetLogit<double> target;
  __shared__ Normalizer<double> normalizer;
  __shared__ Registers<T> aside[kHeld<T>];
  __shared__ double total_of_logits;
  __shared__ Real<T> factor;
  if constexpr (kClasses == Classes::kTerms) {
    if (threadIdx.x == 0) {
      factor = factor_of(args, blockIdx.x);
      target = target_logit_of<kClasses>(args, blockIdx.x);
    }
    __syncthreads();
  }
  Span<T, kClasses> span(args, blockIdx.x);
  if constexpr (kClasses == Classes::kTerms) span.of_row = factor;
  Held<T, kClasses> held(span, group_of_block());
  if (kClasses != Classes::kTerms && threadIdx.x == 0) target = target_logit_of<kClasses>(args, blockIdx.x);
  held.prepare(span);
  const Real<T> largest = held.largest(span), m = largest_in_block(largest);
  const int place = held.place_of(span, m, largest);
  const bool smoothed = is_smoothed<kClasses>(args);
  if (smoothed) {
    const double sum = sum_in_block(held.total(span));
    if (threadIdx.x == 0) total_of_logits = sum;
  }
  const Total total = total_in_block({held.sum(span, base_of(m)), place});
  if (threadIdx.x == 0) {
    const Sums<double> sums = sums_of(span, m, total, args.range.first, smoothed ? total_of_logits : 0);
    held.stand_aside(aside, [&] { normalizer = finish<kClasses>(args, target, blockIdx.x, args.classes, sums); });
  }
  __syncthreads();
  // Computed anew, as registers hold the row until here, and little else.
  Span<T, kClasses> again(args, opaque(blockIdx.x));
  if constexpr (kClasses == Classes::kTerms) again.of_row = factor;
  held.differentiate(again, normalizer);
}

// One thread makes the row's factor, if it has one, for the block.
template <typename T, Classes kClasses>
__device__ void set_factor_in_block(const Arguments<T>& args, int64_t row, Span<T, kClasses>* span) {
  if constexpr (kClasses == Classes::kTerms) {
    __shared__ Real<T> factor;
    if (threadIdx.x == 0) factor = factor_of(args, row);
    __syncthreads();
    span->of_row = factor;
  }
}

// Where clusters are, those of one block do the same.
#if defined(LSOFTMAX_CUDA_ON_CPU)
constexpr bool kNeverInShared = false;
#else
constexpr bool kNeverInShared = kHasClusters;
#endif
template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kMaxBlock) loss_row_in_shared(const __grid_constant__ Arguments<T> args, int kept) {
  if constexpr (kNeverInShared) return;
  __shared__ Normalizer<double> normalizer;
  Span<T, kClasses> span(args, blockIdx.x);
  set_factor_in_block(args, blockIdx.x, &span);
  Streamed<T, kClasses> row(span, group_of_block(), Kept<T>{dynamic_shared<Registers<T>>(), kept},
                            is_smoothed<kClasses>(args));
  row.sum_up();
  const Real<T> m = largest_in_block(row.largest());
  const Total total = total_in_block({row.sum(m), row.place_of(m)});
  const double total_of_logits = is_smoothed<kClasses>(args) ? sum_in_block(row.total()) : 0;
  if (threadIdx.x == 0) {
    const TargetLogit<double> target = target_logit_of<kClasses>(args, blockIdx.x);
    normalizer = finish<kClasses>(args, target, blockIdx.x, args.classes,
                                  sums_of(span, m, total, args.range.first, total_of_logits));
  }
  __syncthreads();
  row.differentiate(normalizer);
}

// The block's part of a row.
template <typename T, Classes kClasses>
__device__ Span<T, kClasses> part_of_block(const Arguments<T>& args) {
  const unsigned parts = static_cast<unsigned>(ceil_div(args.classes, kPart)), part = blockIdx.x % parts;
  const int64_t row = blockIdx.x / parts;
  Span<T, kClasses> span(args, row, part, static_cast<int>(kPart / kWide<T>), part + 1 == parts);
  set_factor_in_block(args, row, &span);
  return span;
}

// parts: [N, parts a row]
template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kBlock)
    sums_part_per_block(const __grid_constant__ Arguments<T> args, Sums<double>* parts) {
  const Span<T, kClasses> part = part_of_block<T, kClasses>(args);
  Streamed<T, kClasses> own(part, group_of_block(), Kept<T>{nullptr, 0}, is_smoothed<kClasses>(args));
  own.sum_up();
  const Real<T> m = largest_in_block(own.largest());
  const Total total = total_in_block({own.sum(m), own.place_of(m)});
  const double total_of_logits = is_smoothed<kClasses>(args) ? sum_in_block(own.total()) : 0;
  if (threadIdx.x == 0) parts[blockIdx.x] = sums_of(part, m, total, args.range.first, total_of_logits);
}

// Takes the row's parts into its sums, or where `anew` into those of no class.
template <typename T>
__global__ void __launch_bounds__(kBlock)
    merge_row_per_warp(const __grid_constant__ Arguments<T> args, const Sums<double>* parts, int64_t count, bool anew) {
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  Sums<double> sums = no_sums();
  for (int64_t n = lane_of_warp(); n < count; n += kWarp) sums = merge(sums, parts[row * count + n]);
  sums = merged_in_lanes(sums, true);
  if (lane_of_warp() == 0) store(args, row, anew ? sums : merge(sums_of(args, row), sums));
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    finish_row_per_thread(const __grid_constant__ Arguments<T> args, int64_t classes) {
  const int64_t row = row_of_thread();
  if (row >= args.rows) return;
  const TargetLogit<double> target = target_logit_of<Classes::kTerms>(args, row);
  store(args, row, finish<Classes::kTerms>(args, target, row, classes, sums_of(args, row)));
}

template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kBlock) products_grad_part_per_block(const __grid_constant__ Arguments<T> args) {
  const int64_t row = blockIdx.x / static_cast<unsigned>(ceil_div(args.classes, kPart));
  const Span<T, kClasses> part = part_of_block<T, kClasses>(args);
  Streamed<T, kClasses>(part, group_of_block(), Kept<T>{nullptr, 0}, false).differentiate(normalizer_of(args, row));
}

// In the workspace of `loss` and `sums`.
struct Workspace {
  Sums<double>* parts;  // [N, parts a row]
  double* sums;         // [5, N]
  double* normalizer;   // [3, N]
};
Workspace lay_out(void* workspace, int64_t rows, int64_t classes) {
  Sums<double>* const parts = static_cast<Sums<double>*>(workspace);
  double* const after = reinterpret_cast<double*>(parts + rows * ceil_div(classes, kPart));
  return {parts, after, after + 5 * rows};
}

// kernel<T, kClasses> for the Classes of the batch.
#define LSOFTMAX_FOR_CLASSES(kernel, args)               \
  ((args).terms != nullptr  ? kernel<T, Classes::kTerms> \
   : (args).bias != nullptr ? kernel<T, Classes::kBias>  \
                            : kernel<T, Classes::kPlain>)

template <typename T>
Status sum_up(const Arguments<T>& args, Sums<double>* parts, bool anew, Stream stream) {
  const int64_t count = ceil_div(args.classes, kPart);
  const auto kernel = LSOFTMAX_FOR_CLASSES(sums_part_per_block, args);
  const Status status = launch(kernel, args.rows * count, 1, kBlock, stream, args, parts);
  if (status != 0) return status;
  return launch(merge_row_per_warp<T>, ceil_div(args.rows, kWarps), 1, kBlock, stream, args,
                static_cast<const Sums<double>*>(parts), count, anew);
}

template <typename T>
Status finish_rows(const Arguments<T>& args, int64_t classes, Stream stream) {
  return launch(finish_row_per_thread<T>, ceil_div(args.rows, kBlock), 1, kBlock, stream, args, classes);
}

}  // namespace

int64_t loss_workspace(int64_t rows, int64_t classes) {
  constexpr int64_t kOfRow = 8 * sizeof(double), kOfPart = sizeof(Sums<double>);
  return rows * (kOfRow + kOfPart * ceil_div(classes, kPart));
}

namespace {

// As many clusters as the device holds, and no more than there are rows. Where it says that it holds none, one, so that
// the launch either works or tells.
template <typename T, typename Kernel>
Status loss_in_clusters(Kernel kernel, const Arguments<T>& args, const LossPlan& plan, Stream stream) {
  int clusters = 0;
  const Status status = count_clusters(kernel, plan, &clusters);
  if (status != 0) return status;
  if (clusters < 1) clusters = 1;
  const int64_t wanted = args.rows < clusters ? args.rows : clusters;
  return launch_shape(kernel, {wanted * plan.blocks, 1, plan.threads, plan.kept * 16, plan.blocks}, stream, args,
                      static_cast<int>(plan.part), static_cast<int>(plan.kept));
}

// In one kernel; kNoSuch where the plan wants several.
constexpr Status kNoSuch = -1;
template <typename T, Classes kClasses>
Status loss_in_one(const Arguments<T>& args, const LossPlan& plan, Stream stream) {
  switch (plan.mapping) {
    case Mapping::kRowPerGroup: {
      int log2_lanes = 1;
      while (1 << log2_lanes < plan.threads) ++log2_lanes;
      const int64_t blocks = ceil_div(args.rows, kGroupsBlock / plan.threads);
      return launch(loss_row_per_group<T, kClasses>, blocks, 1, kGroupsBlock, stream, args, log2_lanes);
    }
    case Mapping::kRowPerBlock:
      return launch(loss_row_per_block<T, kClasses>, args.rows, 1, plan.threads, stream, args);
    case Mapping::kRowInShared:
      return launch_shape(loss_row_in_shared<T, kClasses>, {args.rows, 1, plan.threads, plan.kept * 16}, stream, args,
                          static_cast<int>(plan.kept));
    case Mapping::kRowPerCluster:
      return loss_in_clusters(loss_row_per_cluster<T, kClasses>, args, plan, stream);
    case Mapping::kPartPerBlock:
      break;
  }
  return kNoSuch;
}

}  // namespace

template <typename T>
Status loss(const Arguments<T>& args, Stream stream) {
  LossDevice device;
  const Status status = look_at_device(loss_row_per_cluster<T, Classes::kPlain>, &device);
  if (status != 0) return status;
  const LossPlan plan = plan_loss(args.rows, args.classes, args.classes / kWide<T>, kHeld<T>, device);
  const Status done = LSOFTMAX_FOR_CLASSES(loss_in_one, args)(args, plan, stream);
  if (done != kNoSuch) return done;
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
  const auto kernel = LSOFTMAX_FOR_CLASSES(products_grad_part_per_block, args);
  return launch(kernel, args.rows * ceil_div(args.classes, kPart), 1, kBlock, stream, args);
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

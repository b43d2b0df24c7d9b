// The fused loss with a row per cluster: in the shared memory of its blocks, row after row (copied.cuh).
#ifndef LSOFTMAX_CUDA_CLUSTER_LOSS_CUH_
#define LSOFTMAX_CUDA_CLUSTER_LOSS_CUH_

#include "cuda/copied.cuh"
#include "cuda/finish.cuh"

namespace lsoftmax {
namespace cuda {

constexpr int kMaxBlock = 1024;

// What the blocks of a cluster have in shared memory, beside the row.
template <typename R>
struct OfCluster {
  Arrival arrivals[kMostCopies];
  Sums<double> sums[2];  // of this turn and the one before, which others may still read
  TargetLogit<double> target;
  Normalizer<double> normalizer;
  R factors[2];          // of this turn's row and the next one's, if there are terms
  const void* products;  // of the next row's part,
  int vectors;           // and its whole vectors
};

// With what merge.cuh has there.
template <typename R>
constexpr int64_t kDeclared = sizeof(OfCluster<R>) + sizeof(OfWarps<R>) + sizeof(OfWarps<Total>) + sizeof(SumOfWarps);
constexpr int64_t kSharedOfCuda = 1024;  // a block
static_assert(kDeclared<double> + kSharedOfCuda <= kOtherShared, "plans would count on memory that is not there");

// The clusters take the rows in turn. `part`: vectors of a block, of which `kept` have room in shared memory. Each
// block merges and finishes for itself, as that is sooner done than told.
template <typename T, Classes kClasses>
__global__ void __launch_bounds__(kMaxBlock)
    loss_row_per_cluster(const __grid_constant__ Arguments<T> args, int part, int kept) {
  if constexpr (!kHasClusters) return;
  OfCluster<Real<T>>& own = of_block<OfCluster<Real<T>>>();
  const Cluster cluster = Cluster::own();
  const Group group = group_of_block();
  const Copies<T> copies = {opaque_shared(dynamic_shared<Registers<T>>()), opaque_shared(own.arrivals), kept,
                            group.threads * kCopiedVectors<T, kClasses>};
  const auto part_of = [&](int64_t row) {
    return Span<T, kClasses>(args, row, cluster.rank, part, cluster.rank + 1 == cluster.blocks);
  };
  const int64_t first = blockIdx.x / cluster.blocks, clusters = gridDim.x / cluster.blocks;
  if (group.thread == 0) {
    const Span<T, kClasses> span = part_of(first);
    if (kClasses == Classes::kTerms) own.factors[0] = factor_of(args, first);
    copies.prepare();
#pragma unroll 1
    for (int tile = copies.tiles() - 1; tile >= 0; --tile) copies.ask(tile, span.products, span.vectors);
  }
  __syncthreads();
  const int turns = static_cast<int>(ceil_div(args.rows - first, clusters));
  for (int turn = 0; turn < turns; ++turn) {
    const int64_t row = first + turn * clusters;
    const bool is_last = turn + 1 == turns;
    if (group.thread == 0) {
      own.target = target_logit_of<kClasses>(args, row);
      if (!is_last) {
        if (kClasses == Classes::kTerms) own.factors[(turn + 1) & 1] = factor_of(args, row + clusters);
        const Span<T, kClasses> next = part_of(row + clusters);
        own.products = next.products;
        own.vectors = next.vectors;
      }
    }
    Span<T, kClasses> span = part_of(row);
    if (kClasses == Classes::kTerms) span.of_row = own.factors[turn & 1];
    Copied<T, kClasses> logits(span, group, copies, is_smoothed<kClasses>(args));
    logits.sum_up(turn);
    const Real<T> m = largest_in_block(logits.largest());
    const Total total = total_in_block({logits.sum(m), logits.place_of(m)});
    const double total_of_logits = is_smoothed<kClasses>(args) ? sum_in_block(logits.total()) : 0;
    Sums<double>& sums = own.sums[turn & 1];
    if (group.thread == 0) sums = sums_of(span, m, total, args.range.first, total_of_logits);
    if (cluster.blocks > 1) cluster.sync();
    if (group.thread < kWarp) {
      __syncwarp();
      const bool has_one = group.thread < cluster.blocks;
      const Sums<double> all =
          merged_in_lanes(has_one ? *cluster.of_rank(&sums, group.thread) : no_sums(), kClasses == Classes::kTerms);
      if (group.thread == 0)
        own.normalizer = finish<kClasses>(args, own.target, row, args.classes, all, cluster.rank == 0);
    }
    __syncthreads();
    logits.differentiate(own.normalizer, [&](int tile) {
      if (is_last) return;
      __syncthreads();
      if (group.thread == 0) copies.ask(tile, static_cast<const T*>(own.products), own.vectors);
    });
  }
  if (cluster.blocks > 1) cluster.sync();  // no block leaves while another may read its sums
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_CLUSTER_LOSS_CUH_

// geometry[:, i] = (x_i . w_{y_i}, |x_i|^2, |w_{y_i}|^2)
// target_weights[i] = w_{y_i}, or 0 without a target             where they are asked for
//
// Of weights [D, C] a block takes a chunk of rows, kTileDepth features at a time. It reads the weights with a row per
// lane, so that columns side by side are asked for together (label_order.cuh), turns them in shared memory, and
// multiplies them beside the features with a row per group of lanes.
//
// The chunks are those of the order of the labels where that pays: it is a launch more. Where another kernel asks for
// the order and this one does not, blocks of their own make it in the same launch.
//
// Of weights [C, D] a warp takes a row, beside its class's.
#include <math.h>

#include "core/target.h"
#include "core/validate.h"
#include "cuda/device.cuh"
#include "cuda/label_order.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int64_t kSector = 32;        // bytes
constexpr int64_t kWorthOrder = 1024;  // rows; of fewer the launch takes longer than what it saves

// Whether columns of neighbours are likely to lie in one sector.
template <typename T>
bool are_near(int64_t rows, int64_t classes) {
  constexpr int64_t kColumns = kSector / static_cast<int64_t>(sizeof(T));
  return rows > kWorthOrder && classes / kColumns <= rows;
}

// Blocks from `chunks` on rank rows. `order`: the rows of the chunks, or null for those of the batch.
template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    geometry_chunk_per_block(Arguments<T> args, const int64_t* order, int64_t chunks, LabelOrder ranked) {
  if (blockIdx.x >= chunks) {
    return rank_rows({args.labels, args.range.first, args.classes}, args.rows, blockIdx.x - chunks, ranked);
  }
  using Group = LanesOfTile<kVector>;
  constexpr int kRows = kPlaces / Group::kGroups, kPad = sizeof(T) < 4 ? 4 / sizeof(T) : 1;  // against bank conflicts
  __shared__ T turned[kTileDepth][kPlaces + kPad];
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = lane_of_warp();
  const Group group;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kPlaces;
  const auto row_at = [&](int place) {
    if (begin + place >= args.rows) return static_cast<int64_t>(-1);
    return order != nullptr ? order[begin + place] : begin + place;
  };
  const auto column_at = [&](int64_t row) { return row < 0 ? kNone : column_of(args, row); };
  const int64_t column = column_at(row_at(lane));
  int64_t rows[kRows], columns[kRows];
  Geometry<double> sums[kRows] = {};
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    rows[n] = row_at(group.index + n * Group::kGroups);
    columns[n] = column_at(rows[n]);
  }
  for (int64_t first = 0; first < args.depth; first += kTileDepth) {
    T weights[kTileDepth / kWarps] = {};
    Vector<T, kVector> features[kRows][Group::kSteps] = {};
#pragma unroll
    for (int n = 0; n < kTileDepth / kWarps; ++n) {
      const int64_t d = first + warp + n * kWarps;
      if (column >= 0 && d < args.depth) weights[n] = args.weights[d * args.classes + column];
    }
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
#pragma unroll
      for (int s = 0; s < Group::kSteps; ++s) {
        const int64_t d = first + group.depth(s);
        if (columns[n] >= 0 && d < args.depth) {
          features[n][s] = vector_at<kVector>(args.features + rows[n] * args.depth + d);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kTileDepth / kWarps; ++n) turned[warp + n * kWarps][lane] = weights[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kRows; ++n) {
#pragma unroll
      for (int s = 0; s < Group::kSteps; ++s) {
        const int64_t d = first + group.depth(s);
        if (rows[n] < 0 || d >= args.depth) continue;
        Vector<T, kVector> w;
#pragma unroll
        for (int l = 0; l < kVector; ++l) {
          w.at[l] = turned[group.depth(s) + l][group.index + n * Group::kGroups];
          const double xl = widen(features[n][s].at[l]), wl = widen(w.at[l]);
          sums[n].dot += xl * wl;
          sums[n].features_sq += xl * xl;
          sums[n].weights_sq += wl * wl;
        }
        if (args.target_weights != nullptr) vector_at<kVector>(args.target_weights + rows[n] * args.depth + d) = w;
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < kRows; ++n) {
    const auto sum_up = [](double value) { return sum_in_lanes(value, Group::kLanes); };
    const Geometry<double> sum = {sum_up(sums[n].dot), sum_up(sums[n].features_sq), sum_up(sums[n].weights_sq)};
    if (group.lane > 0 || rows[n] < 0) continue;
    const bool good = is_good_label(label_of(args.labels, rows[n]), all_classes(args));
    store(args.geometry, args.rows, rows[n], good ? sum : Geometry<double>{NAN, NAN, NAN});
  }
}

// Blocks from `blocks` on rank rows.
template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) geometry_row_per_warp(Arguments<T> args, int64_t blocks, LabelOrder ranked) {
  if (blockIdx.x >= blocks) {
    return rank_rows({args.labels, args.range.first, args.classes}, args.rows, blockIdx.x - blocks, ranked);
  }
  const int64_t row = row_of_warp();
  if (row >= args.rows) return;
  const int64_t column = column_of(args, row), begin = row * args.depth;
  T* const copy = args.target_weights != nullptr ? args.target_weights + begin : nullptr;
  Geometry<double> sum = {};
  if (column >= 0) {
    const Copy<T> own = {args.weights + column * args.depth};
    const auto add = [&](int64_t d, const Vector<T, kVector>& xs, const Vector<T, kVector>& ws) {
#pragma unroll
      for (int l = 0; l < kVector; ++l) {
        const double xl = widen(xs.at[l]), wl = widen(ws.at[l]);
        sum.dot += xl * wl;
        sum.features_sq += xl * xl;
        sum.weights_sq += wl * wl;
      }
      if (copy != nullptr) vector_at<kVector>(copy + d) = ws;
    };
    walk<kVector>(args.features + begin, own, args.depth, add);
  } else if (copy != nullptr) {
    for (int64_t d = lane_of_warp() * kVector; d < args.depth; d += kWarp * kVector) {
      vector_at<kVector>(copy + d) = Vector<T, kVector>{};
    }
  }
  sum = {sum_in_lanes(sum.dot, kWarp), sum_in_lanes(sum.features_sq, kWarp), sum_in_lanes(sum.weights_sq, kWarp)};
  if (lane_of_warp() > 0) return;
  const bool good = is_good_label(label_of(args.labels, row), all_classes(args));
  store(args.geometry, args.rows, row, good ? sum : Geometry<double>{NAN, NAN, NAN});
}

}  // namespace

int64_t geometry_workspace(int64_t rows) { return label_order_workspace(rows); }

template <typename T>
Status geometry(const Arguments<T>& args, Stream stream) {
  const LabelOrder order = label_order_of(args);
  const bool follows = !args.class_major && are_near<T>(args.rows, args.classes), asked = args.label_order != nullptr;
  const bool beside = asked && !follows && args.rows <= kFewRows;
  if (follows || (asked && !beside)) {
    const Status status = fill(order, args, stream);
    if (status != 0) return status;
  }
  const int64_t ranking = beside ? ceil_div(args.rows, kRankedByBlock) : 0;
  if (args.class_major) {
    const bool wide = is_wide<T>(args.depth, args.features, args.weights, args.target_weights);
    const int64_t blocks = ceil_div(args.rows, kWarps);
    return launch(wide ? geometry_row_per_warp<T, kWide<T>> : geometry_row_per_warp<T, 1>, blocks + ranking, 1, kBlock,
                  stream, args, blocks, order);
  }
  const bool wide = is_wide<T>(args.depth, args.features, args.target_weights);
  const int64_t chunks = ceil_div(args.rows, kPlaces);
  const int64_t* const rows = follows ? order.rows : nullptr;
  return launch(wide ? geometry_chunk_per_block<T, kWide<T>> : geometry_chunk_per_block<T, 1>, chunks + ranking, 1,
                kBlock, stream, args, rows, chunks, order);
}

#define LSOFTMAX_INSTANTIATE(T) template Status geometry<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

// weights_grad[:, y] += sum over the rows i of class y of h_i (g_s x_i + 2 g_B w_y)
//
// with (g_s, g_A, g_B) = geometry_grad[:, i] and h = loss_grad grad_unit, or 1.
//
// The rows are put in the order of their labels (label_order.cuh) and cut into chunks of kChunk. A warp adds up a
// segment, the rows of one class within one chunk, for 32 kVector feature dimensions. Where the class goes on in the
// next chunk it leaves its sum in the chunk's carry; where the class ends, the sum goes into the gradient, in one
// addition an entry: at once where the class also began there, and in a second kernel, which collects the carries,
// where it did not.
#include "core/target.h"
#include "cuda/device.cuh"
#include "cuda/label_order.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

constexpr int kChunk = 32;

// Of each chunk, the sum of its last segment, if that goes on in the next chunk.
struct Carry {
  double* along_x;  // [chunks, depth]
  double* along_w;  // [chunks]
};

template <int kVector>
struct Sum {
  double along_x[kVector] = {};  // the sum of h g_s x, for a lane's own feature dimensions
  double along_w = 0;            // the sum of 2 h g_B
};

// The sorted rows [begin, end), all of one class.
template <int kVector, typename T>
__device__ Sum<kVector> sum_of(const Arguments<T>& args, const LabelOrder& order, int64_t begin, int64_t end,
                               int64_t d) {
  Sum<kVector> sum;
#pragma unroll 4
  for (int64_t n = begin; n < end; ++n) {
    const int64_t row = order.rows[n];
    const Geometry<double> grad = geometry_grad_of(args, row);
    const double scale = loss_grad_of(args, row);
    const double along_x = scale * grad.dot, norm_grad = scale * grad.weights_sq;
    const Vector<T, kVector> x = vector_at<kVector>(args.features + row * args.depth + d);
    if (along_x == 0 && norm_grad == 0) continue;
    sum.along_w += 2 * norm_grad;
#pragma unroll
    for (int l = 0; l < kVector; ++l) sum.along_x[l] += along_x * widen(x.at[l]);
  }
  return sum;
}

// `row`: one of class y.
template <int kVector, typename T>
__device__ void add_to_column(const Arguments<T>& args, int64_t y, int64_t row, int64_t d, const Sum<kVector>& sum) {
  T* gradient = args.weights_grad + d * args.classes + y;
  Vector<T, kVector> entries, ws;
  if (args.target_weights != nullptr) {
    ws = Copy<T>{args.target_weights + row * args.depth}.template at<kVector>(d);
  } else {
    ws = Column<T>{args.weights + y, args.classes}.template at<kVector>(d);
  }
#pragma unroll
  for (int l = 0; l < kVector; ++l) entries.at[l] = gradient[l * args.classes];
#pragma unroll
  for (int l = 0; l < kVector; ++l) {
    const double share = sum.along_x[l] + (sum.along_w == 0 ? 0 : sum.along_w * widen(ws.at[l]));
    if (share == 0) continue;  // without a margin the entry stays as it is, to the sign of a zero
    assign(entries.at[l], widen(entries.at[l]) + share);
    gradient[l * args.classes] = entries.at[l];
  }
}

// Whether the class of the chunk's last segment goes on in the next chunk.
__device__ inline bool goes_on(const LabelOrder& order, int64_t rows, int64_t end) {
  return end < rows && order.labels[end - 1] == order.labels[end];
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    add_segments_chunk_per_block(Arguments<T> args, LabelOrder order, Carry carry) {
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kWarp + lane_of_warp()) * kVector;
  if (d >= args.depth) return;
  const int64_t chunk = blockIdx.x, first = chunk * kChunk;
  const int64_t last = first + kChunk < args.rows ? first + kChunk : args.rows;
  for (int64_t begin = first + threadIdx.x / kWarp; begin < last; begin += kWarps) {
    const int64_t y = order.labels[begin];
    const bool goes_back = begin > 0 && order.labels[begin - 1] == y;
    if (y < 0 || (goes_back && begin > first)) continue;  // no segment begins here
    const int64_t end = upper_bound(order.labels, begin, last, y);
    if (end == last && goes_on(order, args.rows, last)) {
      const Sum<kVector> sum = sum_of<kVector>(args, order, begin, end, d);
      for (int l = 0; l < kVector; ++l) carry.along_x[chunk * args.depth + d + l] = sum.along_x[l];
      if (d == 0) carry.along_w[chunk] = sum.along_w;
    } else if (!goes_back) {
      add_to_column(args, y, order.rows[begin], d, sum_of<kVector>(args, order, begin, end, d));
    }
  }
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock)
    close_segments_chunk_per_warp(Arguments<T> args, LabelOrder order, Carry carry) {
  const int64_t d = (static_cast<int64_t>(blockIdx.y) * kWarp + lane_of_warp()) * kVector;
  const int64_t chunk = row_of_warp(), first = chunk * kChunk;
  if (d >= args.depth || chunk == 0 || first >= args.rows) return;
  const int64_t last = first + kChunk < args.rows ? first + kChunk : args.rows;
  const int64_t y = order.labels[first];
  if (y < 0 || order.labels[first - 1] != y) return;  // no class comes in
  const int64_t end = upper_bound(order.labels, first, last, y);
  if (end == last && goes_on(order, args.rows, last)) return;  // it does not end here
  Sum<kVector> sum;
  for (int64_t from = lower_bound(order.labels, 0, first, y) / kChunk; from < chunk; ++from) {
    sum.along_w += carry.along_w[from];
#pragma unroll
    for (int l = 0; l < kVector; ++l) sum.along_x[l] += carry.along_x[from * args.depth + d + l];
  }
  const Sum<kVector> own = sum_of<kVector>(args, order, first, end, d);
  sum.along_w += own.along_w;
#pragma unroll
  for (int l = 0; l < kVector; ++l) sum.along_x[l] += own.along_x[l];
  add_to_column(args, y, order.rows[first], d, sum);
}

template <int kVector, typename T>
Status add_classes(const Arguments<T>& args, const LabelOrder& order, const Carry& carry, Stream stream) {
  const int64_t chunks = ceil_div(args.rows, kChunk), tiles = ceil_div(args.depth, kWarp * kVector);
  const Status status =
      launch(add_segments_chunk_per_block<T, kVector>, chunks, tiles, kBlock, stream, args, order, carry);
  if (status != 0 || chunks == 1) return status;
  return launch(close_segments_chunk_per_warp<T, kVector>, ceil_div(chunks, kWarps), tiles, kBlock, stream, args, order,
                carry);
}

}  // namespace

int64_t weights_grad_workspace(int64_t rows, int64_t depth) {
  return label_order_workspace(rows) + ceil_div(rows, kChunk) * (depth + 1) * static_cast<int64_t>(sizeof(double));
}

template <typename T>
Status weights_grad(const Arguments<T>& args, Stream stream) {
  if (args.rows == 0) return cudaSuccess;
  LabelOrder order;
  const Status status = label_order(args.labels, args.rows, args.classes, args.workspace, &order, stream);
  if (status != 0) return status;
  char* const after_order = static_cast<char*>(args.workspace) + label_order_workspace(args.rows);
  double* const after = reinterpret_cast<double*>(after_order);
  const Carry carry = {after, after + ceil_div(args.rows, kChunk) * args.depth};
  return is_wide<T>(args.depth, args.features, args.target_weights) ? add_classes<kWide<T>>(args, order, carry, stream)
                                                                    : add_classes<1>(args, order, carry, stream);
}

#define LSOFTMAX_INSTANTIATE(T) template Status weights_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

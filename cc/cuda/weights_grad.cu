#include "cuda/weights_grad.cuh"

#include "cuda/columns.cuh"

namespace lsoftmax {
namespace cuda {
namespace {

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) sum_spans_tile_per_block(Arguments<T> args, LabelOrder order, Spans spans) {
  sum_span<kVector>(args, order, spans, blockIdx.x);
}

template <typename T, int kVector>
__global__ void __launch_bounds__(kBlock) add_classes_tile_per_block(Arguments<T> args, LabelOrder order, Spans spans) {
  add_classes<kVector>(args, order, spans, blockIdx.x);
}

int64_t spans_of(int64_t rows) { return rows > kFewRows ? ceil_div(rows, kSpan) : 0; }

}  // namespace

int64_t weights_grad_workspace(int64_t rows, int64_t depth) {
  return label_order_workspace(rows) + spans_of(rows) * (depth + 1) * static_cast<int64_t>(sizeof(double));
}

template <typename T>
Status prepare_classes(const Arguments<T>& args, LabelOrder* order, Spans* spans, Stream stream) {
  *order = label_order_of(args);
  *spans = Spans();
  Status status = args.label_order == nullptr ? fill(*order, args, stream) : 0;
  const int64_t count = spans_of(args.rows);
  if (status != 0 || count == 0) return status;
  char* const after_order = static_cast<char*>(args.workspace) + label_order_workspace(args.rows);
  spans->along_x = reinterpret_cast<double*>(after_order);
  spans->along_w = spans->along_x + count * args.depth;
  const bool wide = is_wide<T>(args.depth, args.features, args.target_weights);
  return launch(wide ? sum_spans_tile_per_block<T, kWide<T>> : sum_spans_tile_per_block<T, 1>,
                count * ceil_div(args.depth, kTileDepth), 1, kBlock, stream, args, *order, *spans);
}

template <typename T>
Status weights_grad(const Arguments<T>& args, Stream stream) {
  Status status = take_off_radial(args, stream);
  if (status != 0 || args.rows == 0) return status;
  LabelOrder order;
  Spans spans;
  status = prepare_classes(args, &order, &spans, stream);
  if (status != 0) return status;
  const bool wide = is_wide<T>(args.depth, args.features, args.target_weights);
  return launch(wide ? add_classes_tile_per_block<T, kWide<T>> : add_classes_tile_per_block<T, 1>,
                blocks_of_classes(args), 1, kBlock, stream, args, order, spans);
}

#define LSOFTMAX_INSTANTIATE(T)                                                         \
  template Status prepare_classes<T>(const Arguments<T>&, LabelOrder*, Spans*, Stream); \
  template Status weights_grad<T>(const Arguments<T>&, Stream)
LSOFTMAX_FOR_EACH_TYPE(LSOFTMAX_INSTANTIATE);

}  // namespace cuda
}  // namespace lsoftmax

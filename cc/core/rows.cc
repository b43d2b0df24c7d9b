// Compiled once for every CPU variant, under a namespace of its own (LSOFTMAX_VARIANT); dispatch.cc chooses
// among them. Nothing here may call an inline function of the standard library: see inline.h.
#include "core/rows.h"

#include "core/margin.h"
#include "core/target.h"

namespace lsoftmax {
namespace {

// A weight column is strided: its D entries lie in D rows of W, C apart. Walking W in tiles of a few rows of
// W for a block of samples lets samples whose classes share a cache line share its load, and keeps a tile's
// loads in flight side by side where they do not.
constexpr int64_t kTile = 16;       // feature dimensions: a cache line of floats
constexpr int64_t kLanes = 8;       // partial sums, kept apart for the vector unit
constexpr int64_t kRowBlock = 128;  // samples

LSOFTMAX_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Asks for the entries [0, width) of a weight column that the next tile will read: the hardware's own
// prefetchers do not see through a column's stride.
template <typename T>
LSOFTMAX_INLINE void prefetch_column(const T* w, int64_t stride, int64_t width) {
  for (int64_t l = 0; l < width; ++l) __builtin_prefetch(w + l * stride, 0, 2);
}

struct Partial {
  double dot[kLanes], features_sq[kLanes], weights_sq[kLanes];
};

LSOFTMAX_INLINE double total(const double* lanes) {
  double sum = 0;
  for (int64_t l = 0; l < kLanes; ++l) sum += lanes[l];
  return sum;
}

// sums += the products of x[0 .. width) and of the strided entries of a weight column.
template <typename T>
LSOFTMAX_INLINE void accumulate(const T* x, const T* w, int64_t stride, int64_t width, Partial& sums) {
  for (int64_t l = 0; l < width; ++l) {
    const double xl = widen(x[l]), wl = widen(w[l * stride]);
    sums.dot[l] += xl * wl;
    sums.features_sq[l] += xl * xl;
    sums.weights_sq[l] += wl * wl;
  }
}

template <typename T>
LSOFTMAX_INLINE void copy_column(const T* w, int64_t stride, int64_t width, T* copy) {
  for (int64_t l = 0; l < width; ++l) copy[l] = w[l * stride];
}

template <typename T>
LSOFTMAX_INLINE void fill_with_zeros(T* entries, int64_t width) {
  for (int64_t l = 0; l < width; ++l) assign(entries[l], 0);
}

template <typename T>
void geometry(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t block = smaller(kRowBlock, end - first);
    Partial sums[kRowBlock] = {};
    for (int64_t d = 0; d < args.depth; d += kLanes) {
      const int64_t width = smaller(kLanes, args.depth - d);
      for (int64_t r = 0; r < block; ++r) {
        const int64_t y = label_of(args.labels, first + r);
        T* const copy = args.target_weights ? args.target_weights + (first + r) * args.depth + d : nullptr;
        if (y < 0) {
          if (copy != nullptr) fill_with_zeros(copy, width);
          continue;
        }
        const T* x = args.features + (first + r) * args.depth + d;
        const T* w = args.weights + d * args.classes + y;
        if (copy != nullptr) copy_column(w, args.classes, width, copy);
        prefetch_column(w + width * args.classes, args.classes, smaller(kLanes, args.depth - d - width));
        if (width == kLanes) {
          accumulate(x, w, args.classes, kLanes, sums[r]);
        } else {
          accumulate(x, w, args.classes, width, sums[r]);
        }
      }
    }
    for (int64_t r = 0; r < block; ++r) {
      store(args.geometry, args.rows, first + r,
            {total(sums[r].dot), total(sums[r].features_sq), total(sums[r].weights_sq)});
    }
  }
}

template <typename T>
void logits(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lambda);
  for (int64_t i = begin; i < end; ++i) patch_logit(args, alpha, i);
}

template <typename T>
void logits_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lambda);
  for (int64_t i = begin; i < end; ++i) split_gradient(args, alpha, i);
}

template <typename T>
void angles(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) measure_angle(args, i);
}

// gradient[0 .. width) = scale gradient + along_w w + along_x x, where w is strided.
template <typename T>
LSOFTMAX_INLINE void add_row(const T* x, const T* w, int64_t stride, double along_x, double along_w, double scale,
                             int64_t width, T* gradient) {
  for (int64_t l = 0; l < width; ++l) {
    assign(gradient[l], scale * widen(gradient[l]) + (along_w * widen(w[l * stride]) + along_x * widen(x[l])));
  }
}

template <typename T>
void features_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t last = smaller(first + kRowBlock, end);
    for (int64_t d = 0; d < args.depth; d += kTile) {
      const int64_t width = smaller(kTile, args.depth - d);
      for (int64_t i = first; i < last; ++i) {
        const int64_t y = label_of(args.labels, i);
        if (y < 0) continue;
        const double scale = loss_grad_of(args, i);
        const double along_w = scale * args.geometry_grad[i];
        const double along_x = scale * 2 * args.geometry_grad[args.rows + i];
        const T* x = args.features + i * args.depth + d;
        T* gradient = args.features_grad + i * args.depth + d;
        if (args.target_weights != nullptr) {
          add_row(x, args.target_weights + i * args.depth + d, 1, along_x, along_w, scale, width, gradient);
          continue;
        }
        if (along_w == 0 && along_x == 0 && scale == 1) continue;
        const T* w = args.weights + d * args.classes + y;
        prefetch_column(w + width * args.classes, args.classes, smaller(kTile, args.depth - d - width));
        if (width == kTile) {
          add_row(x, w, args.classes, along_x, along_w, scale, kTile, gradient);
        } else {
          add_row(x, w, args.classes, along_x, along_w, scale, width, gradient);
        }
      }
    }
  }
}

// sum[0 .. width) += along_x x
template <typename T>
LSOFTMAX_INLINE void add_sample(const T* x, double along_x, int64_t width, double* sum) {
  for (int64_t l = 0; l < width; ++l) sum[l] += along_x * widen(x[l]);
}

template <typename T>
void weights_grad(const Arguments<T>& args, const Groups& groups, int64_t begin, int64_t end) {
  for (int64_t d = begin; d < end; d += kTile) {
    const int64_t width = smaller(kTile, end - d);
    for (int64_t g = 0; g < groups.count; ++g) {
      double sum[kTile] = {}, along_w = 0;
      bool changes = false;
      for (int64_t n = groups.starts[g]; n < groups.starts[g + 1]; ++n) {
        const int64_t i = groups.order[n];
        const double scale = loss_grad_of(args, i);
        const double along_x = scale * args.geometry_grad[i];
        const double norm_grad = scale * args.geometry_grad[2 * args.rows + i];
        if (along_x == 0 && norm_grad == 0) continue;
        changes = true;
        along_w += 2 * norm_grad;
        const T* x = args.features + i * args.depth + d;
        if (width == kTile) {
          add_sample(x, along_x, kTile, sum);
        } else {
          add_sample(x, along_x, width, sum);
        }
      }
      if (!changes) continue;
      const bool copied = args.target_weights != nullptr;
      const T* w = copied ? args.target_weights + groups.order[groups.starts[g]] * args.depth + d
                          : args.weights + d * args.classes + groups.classes[g];
      const int64_t stride = copied ? 1 : args.classes;
      T* gradient = args.weights_grad + d * args.classes + groups.classes[g];
      const int64_t next = smaller(kTile, end - d - width);
      if (!copied) prefetch_column(w + width * stride, stride, next);
      prefetch_column(gradient + width * args.classes, args.classes, next);
      for (int64_t l = 0; l < width; ++l) {
        T& entry = gradient[l * args.classes];
        assign(entry, widen(entry) + (sum[l] + along_w * widen(w[l * stride])));
      }
    }
  }
}

}  // namespace

namespace LSOFTMAX_VARIANT {

template <typename T>
const RowKernels<T>& row_kernels() {
  static constexpr RowKernels<T> kKernels = {geometry<T>, logits<T>,        logits_grad<T>,
                                             angles<T>,   features_grad<T>, weights_grad<T>};
  return kKernels;
}

template const RowKernels<float16>& row_kernels<float16>();
template const RowKernels<bfloat16>& row_kernels<bfloat16>();
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();

}  // namespace LSOFTMAX_VARIANT
}  // namespace lsoftmax

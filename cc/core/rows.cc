// Compiled once for every CPU variant, under a namespace of its own (LSOFTMAX_VARIANT); dispatch.cc chooses
// among them. Nothing here may call an inline function of the standard library: see inline.h.
#include "core/rows.h"

#include "core/lanes.h"
#include "core/margin.h"
#include "core/target.h"

namespace lsoftmax {
namespace {

// Of weights [D, C] a column is strided: its D entries lie in D rows of W, C apart. Walking W in tiles of a few rows of
// W for a block of samples lets samples whose classes share a cache line share its load, and keeps a tile's
// loads in flight side by side where they do not.
constexpr int64_t kRowBlock = 128;   // samples
constexpr int64_t kAhead = 6;        // classes whose gradients are asked for before they are needed
constexpr int64_t kFewClasses = 64;  // so few that a tile of all their columns stays at hand

// Asks for the entries [0, width) of a weight column that the next tile will read: the hardware's own
// prefetchers do not see through a column's stride.
template <typename T>
LSOFTMAX_INLINE void prefetch_column(const T* w, int64_t stride, int64_t width) {
  for (int64_t l = 0; l < width; ++l) __builtin_prefetch(w + l * stride, 0, 2);
}

// The same of a row: the rows of a class are anywhere among the samples.
template <typename T>
LSOFTMAX_INLINE void prefetch_row(const T* entries, int64_t width) {
  for (int64_t l = 0; l < width; l += 64 / sizeof(T)) __builtin_prefetch(entries + l, 0, 3);
}

struct Partial {
  double dot[kLanes], features_sq[kLanes], weights_sq[kLanes];
};

// sums += the products of x[0 .. width) and w[0 .. width), width <= kTile.
template <typename T>
LSOFTMAX_INLINE void accumulate(const T* x, const T* w, int64_t width, Partial& sums) {
  for (int64_t first = 0; first < width; first += kLanes) {
    for (int64_t l = 0; l < smaller(kLanes, width - first); ++l) {
      const double xl = widen(x[first + l]), wl = widen(w[first + l]);
      sums.dot[l] += xl * wl;
      sums.features_sq[l] += xl * xl;
      sums.weights_sq[l] += wl * wl;
    }
  }
}

template <typename T>
LSOFTMAX_INLINE void gather_column(const T* w, int64_t stride, int64_t width, T* __restrict column) {
  for (int64_t l = 0; l < width; ++l) column[l] = w[l * stride];
}

// A tile of every column, [classes, kTile], of few classes: which each row then copies in one piece.
template <typename T>
LSOFTMAX_INLINE void transpose_tile(const T* w, int64_t classes, int64_t width, T* __restrict columns) {
  for (int64_t l = 0; l < width; ++l) {
    for (int64_t c = 0; c < classes; ++c) columns[c * kTile + l] = w[l * classes + c];
  }
}

// Of weights [C, D]: one row of the batch after the other, in the same lanes.
template <typename T>
LSOFTMAX_INLINE void geometry_of_lines(const Arguments<T>& args, int64_t begin, int64_t end) {
  const bool copied = args.target_weights != nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t c = column_of(args, i);
    const T* const x = args.features + i * args.depth;
    T* const copy = copied ? args.target_weights + i * args.depth : nullptr;
    Partial sums = {};
    if (c < 0) {
      for (int64_t l = 0; copied && l < args.depth; ++l) assign(copy[l], 0);
    } else {
      const T* const w = args.weights + c * args.depth;
      int64_t d = 0;
      for (; d + kTile <= args.depth; d += kTile) accumulate(x + d, w + d, kTile, sums);
      accumulate(x + d, w + d, args.depth - d, sums);
      if (copied) gather_column(w, 1, args.depth, copy);
    }
    store(args.geometry, args.rows, i, {total(sums.dot), total(sums.features_sq), total(sums.weights_sq)});
  }
}

template <typename T>
void geometry(const Arguments<T>& args, int64_t begin, int64_t end) {
  if (args.class_major) return geometry_of_lines(args, begin, end);
  const bool few = args.classes <= kFewClasses;
  T of_classes[kFewClasses * kTile];
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t block = smaller(kRowBlock, end - first);
    Partial sums[kRowBlock] = {};
    T tile[kRowBlock * kTile];
    for (int64_t d = 0; d < args.depth; d += kTile) {
      const int64_t width = smaller(kTile, args.depth - d);
      // A row's piece of its column: in its copy or in the tile. First all of them are gathered, then all are used:
      // a vector load right behind the stores of its elements would wait for them.
      const bool copied = args.target_weights != nullptr;
      T* const columns = copied ? args.target_weights + first * args.depth + d : tile;
      const int64_t pitch = copied ? args.depth : kTile;
      if (few) transpose_tile(args.weights + d * args.classes, args.classes, width, of_classes);
      for (int64_t r = 0; r < block; ++r) {
        const int64_t c = column_of(args, first + r);
        T* const column = columns + r * pitch;
        if (c < 0) {
          for (int64_t l = 0; l < width; ++l) assign(column[l], 0);
          continue;
        }
        if (few) {
          gather_column(of_classes + c * kTile, 1, width, column);
          continue;
        }
        const T* w = args.weights + d * args.classes + c;
        prefetch_column(w + width * args.classes, args.classes, smaller(kTile, args.depth - d - width));
        if (width == kTile) {
          gather_column(w, args.classes, kTile, column);
        } else {
          gather_column(w, args.classes, width, column);
        }
      }
      for (int64_t r = 0; r < block; ++r) {
        if (column_of(args, first + r) < 0) continue;
        const T* x = args.features + (first + r) * args.depth + d;
        if (width == kTile) {
          accumulate(x, columns + r * pitch, kTile, sums[r]);
        } else {
          accumulate(x, columns + r * pitch, width, sums[r]);
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
  const double alpha = margin_share(*args.lam);
  for (int64_t i = begin; i < end; ++i) patch_logit(args, alpha, i);
}

template <typename T>
void logits_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  const double alpha = margin_share(*args.lam);
  for (int64_t i = begin; i < end; ++i) split_gradient(args, alpha, i);
}

template <typename T>
void angles(const Arguments<T>& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) measure_angle(args, i);
}

// The part along x of what came through the products of unit features, to be taken off it: x . f / |x|^2.
template <typename T>
LSOFTMAX_INLINE double radial_part(const Arguments<T>& args, int64_t row) {
  if (!args.margin.normalize_features) return 0;
  return part_along(args.features + row * args.depth, args.features_grad + row * args.depth, args.depth);
}

// gradient[0 .. width) = scale (gradient + along_w w + along_x x), where w is strided.
template <typename T>
LSOFTMAX_INLINE void add_row(const T* __restrict x, const T* __restrict w, int64_t stride, double along_w,
                             double along_x, double scale, int64_t width, T* __restrict gradient) {
  for (int64_t l = 0; l < width; ++l) {
    assign(gradient[l], scale * widen(gradient[l]) + (along_w * widen(w[l * stride]) + along_x * widen(x[l])));
  }
}

// The same without a target at hand.
template <typename T>
LSOFTMAX_INLINE void scale_row(const T* __restrict x, double along_x, double scale, int64_t width,
                               T* __restrict gradient) {
  if (along_x != 0) {
    for (int64_t l = 0; l < width; ++l) assign(gradient[l], scale * widen(gradient[l]) + along_x * widen(x[l]));
  } else if (scale != 1) {
    for (int64_t l = 0; l < width; ++l) assign(gradient[l], scale * widen(gradient[l]));
  }
}

// The weights of a class in one piece, as they are in copies and in weights [C, D]: one row after the other.
template <typename T>
LSOFTMAX_INLINE void features_grad_of_lines(const Arguments<T>& args, int64_t begin, int64_t end) {
  const bool copied = args.target_weights != nullptr;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t c = column_of(args, i);
    const double scale = loss_grad_of(args, i), radial = radial_part(args, i);
    const T* const x = args.features + i * args.depth;
    T* const gradient = args.features_grad + i * args.depth;
    if (c < 0) {
      scale_row(x, -scale * radial, scale, args.depth, gradient);
    } else {
      const Geometry<double> grad = geometry_grad_of(args, i);
      const double along_w = scale * grad.dot, along_x = scale * (2 * grad.features_sq - radial);
      if (!copied && along_w == 0 && along_x == 0 && scale == 1) continue;
      const T* const w = copied ? args.target_weights + i * args.depth : args.weights + c * args.depth;
      add_row(x, w, 1, along_w, along_x, scale, args.depth, gradient);
    }
  }
}

template <typename T>
void features_grad(const Arguments<T>& args, int64_t begin, int64_t end) {
  if (args.target_weights != nullptr || args.class_major) return features_grad_of_lines(args, begin, end);
  for (int64_t first = begin; first < end; first += kRowBlock) {
    const int64_t last = smaller(first + kRowBlock, end);
    double radial[kRowBlock];
    for (int64_t i = first; i < last; ++i) radial[i - first] = radial_part(args, i);
    for (int64_t d = 0; d < args.depth; d += kTile) {
      const int64_t width = smaller(kTile, args.depth - d);
      for (int64_t i = first; i < last; ++i) {
        const int64_t c = column_of(args, i);
        const Geometry<double> grad = geometry_grad_of(args, i);
        const double scale = loss_grad_of(args, i);
        T* gradient = args.features_grad + i * args.depth + d;
        const T* x = args.features + i * args.depth + d;
        if (c < 0) scale_row(x, -scale * radial[i - first], scale, width, gradient);
        const double along_x = 2 * grad.features_sq - radial[i - first];
        if (c < 0 || (grad.dot == 0 && along_x == 0 && scale == 1)) continue;
        const T* w = args.weights + d * args.classes + c;
        prefetch_column(w + width * args.classes, args.classes, smaller(kTile, args.depth - d - width));
        if (width == kTile) {
          add_row(x, w, args.classes, scale * grad.dot, scale * along_x, scale, kTile, gradient);
        } else {
          add_row(x, w, args.classes, scale * grad.dot, scale * along_x, scale, width, gradient);
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

// gradient[0 .. width) += sum + along_w w, where w and gradient are strided.
template <typename T>
LSOFTMAX_INLINE void add_class(const double* sum, double along_w, const T* w, int64_t w_stride, int64_t width,
                               T* gradient, int64_t stride) {
  for (int64_t l = 0; l < width; ++l) {
    T& entry = gradient[l * stride];
    assign(entry, widen(entry) + (sum[l] + along_w * widen(w[l * w_stride])));
  }
}

template <typename T>
void weights_grad(const Arguments<T>& args, const Groups& groups, int64_t begin, int64_t end) {
  const int64_t of_feature = feature_stride(args), of_class = class_stride(args);
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
                          : args.weights + d * of_feature + groups.classes[g] * of_class;
      T* gradient = args.weights_grad + d * of_feature + groups.classes[g] * of_class;
      if (args.class_major) {
        add_class(sum, along_w, w, 1, width, gradient, 1);
        continue;
      }
      const int64_t stride = copied ? 1 : args.classes;
      if (!copied) prefetch_column(w + width * stride, stride, smaller(kTile, end - d - width));
      if (g + kAhead < groups.count) {
        prefetch_column(args.weights_grad + d * args.classes + groups.classes[g + kAhead], args.classes, width);
        const int64_t ahead = groups.order[groups.starts[g + kAhead]] * args.depth + d;
        prefetch_row(args.features + ahead, width);
        if (copied) prefetch_row(args.target_weights + ahead, width);
      }
      add_class(sum, along_w, w, stride, width, gradient, args.classes);
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

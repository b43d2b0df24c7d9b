// What one thread does for a row of the fused loss (core/target.h): before its sums are known, and after.
#ifndef LSOFTMAX_CUDA_FINISH_CUH_
#define LSOFTMAX_CUDA_FINISH_CUH_

#include <math.h>

#include "core/target.h"
#include "core/validate.h"
#include "cuda/span.cuh"

namespace lsoftmax {
namespace cuda {

// The arguments as a kernel of these classes knows them, so that it has no code, and no registers, for others.
template <Classes kClasses, typename T>
__device__ Arguments<T> known(const Arguments<T>& args) {
  Arguments<T> known = args;
  if (kClasses != Classes::kTerms) known.terms = nullptr;
  return known;
}

// The target's logit before its bias: what of finishing a row needs no sums, and so can be done while the row is on its
// way. Of a bad label or lambda, any number.
template <Classes kClasses, typename T>
__device__ TargetLogit<double> target_logit_of(const Arguments<T>& args, int64_t row) {
  return target_logit_of(known<kClasses>(args), margin_share(*args.lam), geometry_of(args, row));
}

// What its products are multiplied by. Of a bad label, any number.
template <typename T>
__device__ Real<T> factor_of(const Arguments<T>& args, int64_t row) {
  return static_cast<Real<T>>(row_factor_of(args, row));
}

template <Classes kClasses, typename T>
__device__ bool is_smoothed(const Arguments<T>& args) {
  return kClasses == Classes::kTerms && terms_of(args.terms).smoothing != 0;
}

// finish_row of core/target.h; `stores` as there. A row that cannot be computed says so in each number but its
// predicted class. Labels are below `classes`.
template <Classes kClasses, typename T>
__device__ Normalizer<double> finish(const Arguments<T>& args, const TargetLogit<double>& t, int64_t row,
                                     int64_t classes, const Sums<double>& sums, bool stores = true) {
  const int64_t y = label_of(args.labels, row);
  if (is_good_lambda(*args.lam) && is_good_label(y, classes)) {
    const double bias = args.bias != nullptr && y >= 0 ? widen(args.bias[y]) : 0;
    return finish_row(known<kClasses>(args), t, row, bias, sums, stores);
  }
  if (!stores) return {NAN, NAN, NAN};
  args.predicted[row] = static_cast<int64_t>(sums.predicted);
  assign(args.loss[row], NAN);
  if (args.grad_unit != nullptr) args.grad_unit[row] = 1;
  args.target_grad[row] = NAN;
  store(args.geometry_grad, args.rows, row, {NAN, NAN, NAN});
  return {NAN, NAN, NAN};
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_FINISH_CUH_

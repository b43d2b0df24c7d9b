// Chooses the CPU variant of the row kernels, once, when first asked.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/columns.h"
#include "core/filter.h"
#include "core/loss.h"
#include "core/rows.h"

namespace lsoftmax {

#define LSOFTMAX_DECLARE(variant)           \
  namespace variant {                       \
  template <typename T>                     \
  const RowKernels<T>& row_kernels();       \
  template <typename T>                     \
  const LossKernels<T>& loss_kernels();     \
  template <typename T>                     \
  const ColumnKernels<T>& column_kernels(); \
  template <typename T>                     \
  const FilterKernels<T>& filter_kernels(); \
  }
LSOFTMAX_DECLARE(baseline)
#ifdef LSOFTMAX_X86_VARIANTS
LSOFTMAX_DECLARE(avx2)
LSOFTMAX_DECLARE(avx512)
#endif
#undef LSOFTMAX_DECLARE

namespace {

enum class Variant { kBaseline, kAvx2, kAvx512 };

constexpr const char* kNames[] = {"baseline", "avx2", "avx512"};

Variant best() {
#ifdef LSOFTMAX_X86_VARIANTS
  __builtin_cpu_init();
  const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                  __builtin_cpu_supports("bmi2");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) return Variant::kAvx512;
  if (v3) return Variant::kAvx2;
#endif
  return Variant::kBaseline;
}

Variant choose() {
  const Variant most = best();
  const char* const wish = getenv("LSOFTMAX_CPU");
  if (wish == nullptr || *wish == '\0') return most;
  for (int v = 0; v <= static_cast<int>(most); ++v) {
    if (strcmp(wish, kNames[v]) == 0) return static_cast<Variant>(v);
  }
  fprintf(stderr, "lsoftmax_op: LSOFTMAX_CPU=%s names no variant that this machine runs (one of:", wish);
  for (int v = 0; v <= static_cast<int>(most); ++v) fprintf(stderr, " %s", kNames[v]);
  fprintf(stderr, "); using %s.\n", kNames[static_cast<int>(most)]);
  return most;
}

Variant chosen() {
  static const Variant variant = choose();
  return variant;
}

}  // namespace

#ifdef LSOFTMAX_X86_VARIANTS
#define LSOFTMAX_CHOOSE(kernels)     \
  switch (chosen()) {                \
    case Variant::kAvx512:           \
      return avx512::kernels<T>();   \
    case Variant::kAvx2:             \
      return avx2::kernels<T>();     \
    default:                         \
      return baseline::kernels<T>(); \
  }
#else
#define LSOFTMAX_CHOOSE(kernels) return baseline::kernels<T>();
#endif

template <typename T>
const RowKernels<T>& row_kernels() {
  LSOFTMAX_CHOOSE(row_kernels)
}
template <typename T>
const LossKernels<T>& loss_kernels() {
  LSOFTMAX_CHOOSE(loss_kernels)
}

template <typename T>
const ColumnKernels<T>& column_kernels() {
  LSOFTMAX_CHOOSE(column_kernels)
}
template <typename T>
const FilterKernels<T>& filter_kernels() {
  LSOFTMAX_CHOOSE(filter_kernels)
}

#define LSOFTMAX_INSTANTIATE(T)                         \
  template const RowKernels<T>& row_kernels<T>();       \
  template const LossKernels<T>& loss_kernels<T>();     \
  template const ColumnKernels<T>& column_kernels<T>(); \
  template const FilterKernels<T>& filter_kernels<T>()
LSOFTMAX_INSTANTIATE(float16);
LSOFTMAX_INSTANTIATE(bfloat16);
LSOFTMAX_INSTANTIATE(float);
LSOFTMAX_INSTANTIATE(double);

const char* cpu_variant() { return kNames[static_cast<int>(chosen())]; }

}  // namespace lsoftmax

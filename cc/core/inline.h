// LSOFTMAX_INLINE marks a function that host and device compile, and that leaves no symbol behind: the row kernels
// are compiled once for every CPU variant, and a shared symbol would let the linker pick AVX-512 code for a
// machine without it.
#ifndef LSOFTMAX_CORE_INLINE_H_
#define LSOFTMAX_CORE_INLINE_H_

#if defined(__CUDACC__)
#define LSOFTMAX_INLINE static inline __host__ __device__ __attribute__((always_inline))
#else
#define LSOFTMAX_INLINE static inline __attribute__((always_inline))
#endif

// LSOFTMAX_VISIBLE marks a type that templates of a shared library are named after (cuda/kernels.h): of one that is
// hidden, as all else is, they would be hidden, too.
#define LSOFTMAX_VISIBLE __attribute__((visibility("default")))

#endif  // LSOFTMAX_CORE_INLINE_H_

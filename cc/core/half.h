// The two 16-bit floats as storage: what they hold is computed in float or double, never in 16 bits.
//
//   float16    1 sign, 5 exponent, 10 fraction bits (IEEE 754 binary16)
//   bfloat16   1 sign, 8 exponent,  7 fraction bits (the upper half of a float)
//
// Layout-compatible with Eigen::half, Eigen::bfloat16, numpy.float16 and ml_dtypes.bfloat16. Narrowing rounds to
// nearest, ties to even. Branches are selections, so that loops over rows vectorise; CUDA has an instruction for each.
// The float-to-half arithmetic is Fabian Giesen's.
#ifndef LSOFTMAX_CORE_HALF_H_
#define LSOFTMAX_CORE_HALF_H_

#include <stdint.h>
#include <string.h>

#include "core/inline.h"

namespace lsoftmax {

struct LSOFTMAX_VISIBLE float16 {
  uint16_t bits;
};
struct LSOFTMAX_VISIBLE bfloat16 {
  uint16_t bits;
};

LSOFTMAX_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

LSOFTMAX_INLINE float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Widening, exact: `widen(x)` is a float or, for double, the double itself.
LSOFTMAX_INLINE double widen(double x) { return x; }
LSOFTMAX_INLINE float widen(float x) { return x; }
LSOFTMAX_INLINE float widen(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
LSOFTMAX_INLINE float widen(float16 x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = magnitude & (0x7c00u << 13);
  const uint32_t rebiased = magnitude + ((127u - 15u) << 23);
  const uint32_t special = rebiased + ((128u - 16u) << 23);  // inf, NaN
  const uint32_t subnormal = bits_of(float_of(rebiased + (1u << 23)) - float_of((127u - 14u) << 23));
  const uint32_t finite = exponent == 0 ? subnormal : rebiased;
  return float_of(sign | (exponent == (0x7c00u << 13) ? special : finite));
#endif
}

constexpr float kLargestFloat16 = 65504;

// What T is computed in: float, or double for doubles.
template <typename T>
using Real = decltype(widen(T()));

// Narrowing: `assign(y, x)` sets y to the value nearest to x. A NaN stays a NaN, an overflow becomes
// an infinity.
LSOFTMAX_INLINE void assign(double& y, double x) { y = x; }
LSOFTMAX_INLINE void assign(float& y, double x) { y = static_cast<float>(x); }
LSOFTMAX_INLINE void assign(bfloat16& y, double x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(static_cast<float>(x)));
#else
  const uint32_t bits = bits_of(static_cast<float>(x));
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  y.bits = static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40u : rounded >> 16);
#endif
}
LSOFTMAX_INLINE void assign(float16& y, double x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(static_cast<float>(x)));
#else
  const uint32_t bits = bits_of(static_cast<float>(x));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t finite = magnitude < (113u << 23) ? subnormal : normal;
  y.bits = static_cast<uint16_t>(sign | (magnitude >= (143u << 23) ? special : finite));
#endif
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_CORE_HALF_H_

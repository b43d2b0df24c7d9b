// What the pass over the logits computes with: entries as registers hold them, their maximum and their exponentials.
//
// A register holds two halves, a float or a double. Two halves are compared and narrowed by one instruction, which the
// devices from sm_80 on have; elsewhere, and on the CPU, the same is done entry by entry.
//
// exp(d), d = z - m <= 0, comes in two qualities, by what it is for; in double there is one. Instructions are float's:
//
//   exponential(d)   2 ulp, results below the normal range included; 8 instructions. Gradients of float, for which
//                    there is FastSlope, too: 2^-22 of ex2.approx, |d| 2^-28 of ln 2 and, where d < -22, |d| 2^-24 of n
//   quick_exp(d)     2^(d log2 e): 2 instructions. 0 where the result is below the normal range. Relative error
//                    2^-22 of ex2.approx, and |d| 2^-23.7 of log2 e and of rounding d log2 e
//
// quick_exp serves sums: S errs by 2^-22 + D 2^-23.7, with D the mean of |d| under the row's own probabilities, about
// ln C at the most; d itself has been rounded by |d| 2^-24 in either quality. And gradients of halves: below 2^-16 in
// all of their range, where rounding them costs 2^-12 or more.
//
// m is subtracted first. z log2 e - m log2 e in one multiply-add would save an instruction, and err by 3e-4 at
// |m| = 10^4.
#ifndef LSOFTMAX_CUDA_PACKED_CUH_
#define LSOFTMAX_CUDA_PACKED_CUH_

#include <float.h>
#include <math.h>
#include <string.h>

#include <type_traits>

#include "core/exponential.h"
#include "core/softmax.h"
#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

template <typename T>
constexpr bool kIsHalf = sizeof(T) == 2;

__device__ inline float larger(float a, float b) { return fmaxf(a, b); }  // of a NaN and a number, the number
__device__ inline double larger(double a, double b) { return fmax(a, b); }

template <typename R>
__device__ inline R minus_infinity() {
  return -static_cast<R>(INFINITY);
}

// A register of T's entries, and what holds -inf in each of them.
template <typename T>
struct Packed {
  using Register = T;
  static constexpr int kEntries = 1;
  __device__ static Register lowest() { return minus_infinity<T>(); }
  __device__ static Register larger_of(Register a, Register b) { return larger(a, b); }
  __device__ static T entry(Register r, int) { return r; }
  __device__ static Register narrowed(const T* entries) { return entries[0]; }
};

template <typename T>
struct PackedHalves {
  using Register = uint32_t;
  static constexpr int kEntries = 2;
  static constexpr bool kIsBrain = std::is_same<T, bfloat16>::value;
  static constexpr uint32_t kLowest = kIsBrain ? 0xff80ff80u : 0xfc00fc00u;

  __device__ static Register lowest() { return kLowest; }

  // Of a NaN and a number, the number.
  __device__ static Register larger_of(Register a, Register b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    Register r;
    if (kIsBrain) {
      asm("max.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    } else {
      asm("max.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    }
    return r;
#else
    Register r = 0;
    for (int n = 0; n < 2; ++n) {
      const float x = entry(a, n), y = entry(b, n);
      const bool takes_b = y > x || x != x;
      r |= (takes_b ? b : a) & (n == 0 ? 0x0000ffffu : 0xffff0000u);
    }
    return r;
#endif
  }

  __device__ static float entry(Register r, int n) {
    T half;
    half.bits = static_cast<uint16_t>(n == 0 ? r : r >> 16);
    return widen(half);
  }

  __device__ static Register narrowed(const float* entries) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    Register r;
    if (kIsBrain) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(entries[1]), "f"(entries[0]));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(entries[1]), "f"(entries[0]));
    }
    return r;
#else
    T low, high;
    assign(low, entries[0]);
    assign(high, entries[1]);
    return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
  }
};
template <>
struct Packed<float16> : PackedHalves<float16> {};
template <>
struct Packed<bfloat16> : PackedHalves<bfloat16> {};

// 16 bytes of a row, in memory and in registers.
template <typename T>
using Wide = Vector<T, kWide<T>>;
template <typename T>
using Registers = Vector<typename Packed<T>::Register, 16 / sizeof(typename Packed<T>::Register)>;
template <typename T>
constexpr int kRegisters = 16 / sizeof(typename Packed<T>::Register);

// Vector `vector` from an address on that is a multiple of 16 bytes. A device does it in one access if it is told the
// type: of memcpy the compiler makes bytes.
template <typename T>
__device__ inline Registers<T> load_registers(const T* from, int vector) {
#if defined(__CUDA_ARCH__)
  return reinterpret_cast<const Registers<T>*>(from)[vector];
#else
  Registers<T> v;
  memcpy(&v, &vector_at<kWide<T>>(from + vector * kWide<T>), sizeof v);
  return v;
#endif
}
template <typename T>
__device__ inline void store_registers(const Registers<T>& v, T* to, int vector) {
#if defined(__CUDA_ARCH__)
  reinterpret_cast<Registers<T>*>(to)[vector] = v;
#else
  memcpy(&vector_at<kWide<T>>(to + vector * kWide<T>), &v, sizeof v);
#endif
}

template <typename T>
__device__ inline Registers<T> lowest_vector() {
  Registers<T> v;
#pragma unroll
  for (int r = 0; r < kRegisters<T>; ++r) v.at[r] = Packed<T>::lowest();
  return v;
}

// So that nothing that the compiler made of the vector, such as its entries unpacked, stays in registers over this
// place: the vector itself takes the fewest.
template <typename T>
__device__ inline void forget_entries(Registers<T>& v) {
#if defined(__CUDA_ARCH__)
  if constexpr (kIsHalf<T>) {
#pragma unroll
    for (int r = 0; r < kRegisters<T>; ++r) asm volatile("" : "+r"(v.at[r]));
  }
#else
  (void)v;
#endif
}

// The value, of which the compiler knows nothing: it computes anew what depends on it, in registers of the thread.
template <typename V>
__device__ inline V opaque(V value) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == 8) {
    asm volatile("" : "+l"(value));
  } else {
    asm volatile("" : "+r"(value));
  }
#endif
  return value;
}
// The same of a pointer to device memory: an address beside it is then one instruction.
template <typename V>
__device__ inline V* opaque(V* value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(value));
  __builtin_assume(__isGlobal(value));
#endif
  return value;
}

// The same of a pointer to shared memory.
template <typename V>
__device__ inline V* opaque_shared(V* value) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(value));
  __builtin_assume(__isShared(value));
#endif
  return value;
}

// An entry of some vector, to be replaced by -inf. By selections under masks: of an index into the vector's registers
// the compiler makes an array in memory.
template <typename T>
class Hole {
  using Register = typename Packed<T>::Register;
  using Bits = std::conditional_t<sizeof(Register) == 8, uint64_t, uint32_t>;

 public:
  // Entry l of vector `vector`.
  __device__ Hole(int vector, int l) : vector_(vector) {
    constexpr int kEntries = Packed<T>::kEntries;
    const Bits own = kEntries == 1 ? ~Bits{0} : Bits{0xffff} << (16 * (l % kEntries));
#pragma unroll
    for (int r = 0; r < kRegisters<T>; ++r) kept_[r] = r == l / kEntries ? ~own : ~Bits{0};
  }

  __device__ int vector() const { return vector_; }

  __device__ void apply(int vector, Registers<T>& v) const {
    const Bits lowest = bits_of_register(Packed<T>::lowest());
#pragma unroll
    for (int r = 0; r < kRegisters<T>; ++r) {
      const Bits old = bits_of_register(v.at[r]);
      const Bits bits = vector == vector_ ? (old & kept_[r]) | (lowest & ~kept_[r]) : old;
      memcpy(&v.at[r], &bits, sizeof bits);
    }
  }

 private:
  __device__ static Bits bits_of_register(const Register& r) {
    Bits bits;
    memcpy(&bits, &r, sizeof bits);
    return bits;
  }

  const int vector_;
  Bits kept_[kRegisters<T>];
};

template <typename T>
__device__ inline Real<T> entry(const Registers<T>& v, int l) {
  return Packed<T>::entry(v.at[l / Packed<T>::kEntries], l % Packed<T>::kEntries);
}

// The vector's entry l as it is in memory.
template <typename T>
__device__ inline T stored_entry(const Registers<T>& v, int l) {
  if constexpr (kIsHalf<T>) {
    T half;
    half.bits = static_cast<uint16_t>(v.at[l / 2] >> (16 * (l % 2)));
    return half;
  } else {
    return v.at[l];
  }
}

template <typename T>
__device__ inline Registers<T> narrowed(const Real<T>* entries) {
  Registers<T> v;
#pragma unroll
  for (int r = 0; r < kRegisters<T>; ++r) v.at[r] = Packed<T>::narrowed(entries + r * Packed<T>::kEntries);
  return v;
}

template <typename T>
__device__ inline typename Packed<T>::Register larger_of(typename Packed<T>::Register largest, const Registers<T>& v) {
#pragma unroll
  for (int r = 0; r < kRegisters<T>; ++r) largest = Packed<T>::larger_of(largest, v.at[r]);
  return largest;
}
template <typename T>
__device__ inline Real<T> largest_entry(typename Packed<T>::Register r) {
  Real<T> largest = Packed<T>::entry(r, 0);
#pragma unroll
  for (int n = 1; n < Packed<T>::kEntries; ++n) largest = larger(largest, Packed<T>::entry(r, n));
  return largest;
}

// 2^x; 0 where it is below the normal range.
__device__ inline float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  const float y = exp2f(x);
  return y < FLT_MIN ? 0 : y;
#endif
}

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

__device__ inline float saturated(float x) {  // into [0, 1]; NaN becomes 0
#if defined(__CUDA_ARCH__)
  return __saturatef(x);
#else
  return fminf(fmaxf(x, 0), 1);
#endif
}

__device__ inline float quick_exp(float d) { return power_of_two(d * kLog2E); }
__device__ inline double quick_exp(double d) { return exponential(d); }

// The gradient of a logit z: exp(z - max) scale + addend. An addend that the compiler knows to be -0 costs nothing.
template <typename T, bool kHalf = kIsHalf<T>>
struct Slope {
  Real<T> max, scale, addend;
  __device__ Slope(const Normalizer<double>& normalizer, double addend)
      : max(static_cast<Real<T>>(normalizer.max)),
        scale(static_cast<Real<T>>(normalizer.scale)),
        addend(static_cast<Real<T>>(addend)) {}
  __device__ Real<T> at(Real<T> z) const { return of(exponential(z - max)); }
  __device__ Real<T> of(Real<T> exponential) const { return exponential * scale + addend; }
};
// Of halves: quick_exp(z - max) 2^24 times scale 2^-24, which leaves bfloat16 its numbers below the normal range and
// costs no instruction. Of a tiny scale those are 0 anyway, and the factor would take its digits.
template <typename T>
struct Slope<T, true> {
  float max, scale, addend, lift;
  __device__ Slope(const Normalizer<double>& normalizer, double addend)
      : max(static_cast<float>(normalizer.max)),
        addend(static_cast<float>(addend)),
        lift(normalizer.scale < 0x1p-64 ? 0 : 24) {
    scale = static_cast<float>(normalizer.scale * (normalizer.scale < 0x1p-64 ? 1 : 0x1p-24));
  }
  __device__ float at(float z) const { return power_of_two(fmaf(z - max, kLog2E, lift)) * scale + addend; }
};

// The same in fewer instructions. Of floats 7 instead of 10: with d = z - max, a lift L, and n near d log2 e,
//
//   exp(d) scale = 2^(n + L) exp(d - n ln 2) (2^-L scale)
//
// n + L is what fma rounds d log2 e + L to; n, that less L and 2^-17. So d - n ln 2 is small, from 0 to 2^-15, its exp
// 1 more than it, and it is never negative: saturation, which costs nothing, makes the NaN 0 that it is where d = -inf.
// The 2^-17 goes into the scale, too. L leaves results their numbers below the normal range.
template <typename T>
struct FastSlope : Slope<T> {
  using Slope<T>::Slope;
};
template <>
struct FastSlope<float> {
  float max, scale, addend, lift, less;
  __device__ FastSlope(const Normalizer<double>& normalizer, double addend)
      : max(static_cast<float>(normalizer.max)),
        addend(static_cast<float>(addend)),
        lift(normalizer.scale < 0x1p-60 ? 0 : 64),
        less(lift + 0x1p-17f) {
    constexpr double kOfLess = 0.9999947117206743;  // 2^-2^-17
    scale = static_cast<float>(normalizer.scale * (normalizer.scale < 0x1p-60 ? 1 : 0x1p-64) * kOfLess);
  }
  __device__ float at(float z) const {
    const float d = z - max, lifted = fmaf(d, kLog2E, lift), rest = saturated(fmaf(less - lifted, kLn2, d));
    const float power = power_of_two(lifted) * scale;
    return fmaf(power, rest, power) + addend;
  }
};

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_PACKED_CUH_

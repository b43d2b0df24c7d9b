// What devices have from sm_90 on, in the words of PTX: clusters of blocks that read each other's shared memory, and
// copies of many bytes into it, of which a barrier in shared memory tells when they are there.
//
//   Cluster      the block's place in its cluster; its meeting; the others' memory. A launch without clusters has
//                clusters of one block
//   Arrival      an mbarrier of one arrival a turn and the bytes that it announces: turn 0, 1, 2, ..
//   bulk_copy    of multiples of 16 bytes on borders of 16 bytes, from device memory; the arrival counts them
//
// A copy is made by a unit of its own (the "async proxy"), which waits for what threads have stored or read in shared
// memory only where they say so: before_copies() by who stored, a barrier of the block, before_copies() by who copies.
#ifndef LSOFTMAX_CUDA_CLUSTER_CUH_
#define LSOFTMAX_CUDA_CLUSTER_CUH_

#include "cuda/device.cuh"

namespace lsoftmax {
namespace cuda {

// Whether the code is compiled for such a device. Kernels of clusters are empty where it is not.
#if defined(LSOFTMAX_CUDA_ON_CPU) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif
constexpr int kClusterCode = 90;  // the least version of PTX code, times 10, that has it

using Arrival = uint64_t;  // in shared memory

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ inline unsigned shared_address(const void* of) {
  return static_cast<unsigned>(__cvta_generic_to_shared(of));
}

struct Cluster {
  int rank, blocks;

  __device__ static Cluster own() {
    Cluster cluster;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(cluster.rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(cluster.blocks));
    return cluster;
  }
  // Until all threads of the cluster are here; they see what the others stored before.
  __device__ static void sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
  }
  // The same variable in the shared memory of block `rank`, which must not have ended.
  template <typename V>
  __device__ static const V* of_rank(const V* own, int rank) {
    const V* there;
    asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(own), "r"(rank));
    return there;
  }
};

__device__ inline void init_arrival(Arrival* arrival) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(arrival)) : "memory");
}
// After init_arrival, by the thread that did it, before others and copies use them.
__device__ inline void publish_arrivals() {
  asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async;" ::: "memory");
}
// The turn's own arrival: it is complete when so many bytes have been copied.
__device__ inline void announce(Arrival* arrival, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(arrival)), "r"(bytes)
               : "memory");
}
// Until the turn of this parity is complete; none before it is still under way.
__device__ inline void await(Arrival* arrival, unsigned parity) {
  asm volatile(
      "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}" ::
          "r"(shared_address(arrival)),
      "r"(parity)
      : "memory");
}
__device__ inline void bulk_copy(void* to, const void* from, int bytes, Arrival* arrival) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(arrival))
               : "memory");
}
__device__ inline void before_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#elif defined(LSOFTMAX_CUDA_ON_CPU)

struct Cluster {
  int rank, blocks;

  static Cluster own() { return {cuda_on_cpu::cluster_rank(), cuda_on_cpu::cluster_blocks()}; }
  static void sync() { cuda_on_cpu::wait_for_cluster(); }
  template <typename V>
  static const V* of_rank(const V* own, int rank) {
    return static_cast<const V*>(cuda_on_cpu::of_rank(own, rank));
  }
};

inline void init_arrival(Arrival* arrival) { cuda_on_cpu::init_arrival(arrival); }
inline void publish_arrivals() {}
inline void announce(Arrival* arrival, int bytes) { cuda_on_cpu::announce(arrival, bytes); }
inline void await(Arrival* arrival, unsigned parity) { cuda_on_cpu::await(arrival, parity); }
inline void bulk_copy(void* to, const void* from, int bytes, Arrival* arrival) {
  cuda_on_cpu::bulk_copy(to, from, bytes, arrival);
}
inline void before_copies() {}

#else

struct Cluster {
  int rank, blocks;

  __device__ static Cluster own() { return {0, 1}; }
  __device__ static void sync() {}
  template <typename V>
  __device__ static const V* of_rank(const V* own, int) {
    return own;
  }
};

__device__ inline void init_arrival(Arrival*) {}
__device__ inline void publish_arrivals() {}
__device__ inline void announce(Arrival*, int) {}
__device__ inline void await(Arrival*, unsigned) {}
__device__ inline void bulk_copy(void*, const void*, int, Arrival*) {}
__device__ inline void before_copies() {}

#endif

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_CLUSTER_CUH_

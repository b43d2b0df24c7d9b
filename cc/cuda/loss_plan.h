// How a device's threads share the rows of the fused loss: by the shape and by what the device has of shared memory, so
// that the same batch is computed in the same order each time.
//
//   row per group    rows that some lanes of a warp hold in registers: 2, 4, .. 32 lanes, several rows a block
//   row per block    rows that a block holds in registers: 64, 96, .. 1024 threads
//   row in shared    longer ones; as many threads as make 1024 a multiprocessor, as the blocks that its shared memory
//                    holds at once are 4, 2 or 1. What of the row fits there is read from memory once, the rest a
//                    second time, from the cache if it is still there
//   part per block   rows too few to fill the device, or so long that little of them would stay: each part is read
//                    twice, but all of the device reads
//
// While one row waits for its sums, another is to read: more than 512 threads hold a row only where shared memory
// would hold no two.
#ifndef LSOFTMAX_CUDA_LOSS_PLAN_H_
#define LSOFTMAX_CUDA_LOSS_PLAN_H_

#include <stdint.h>

namespace lsoftmax {
namespace cuda {

enum class Mapping { kRowPerGroup, kRowPerBlock, kRowInShared, kPartPerBlock };

struct LossPlan {
  Mapping mapping;
  int threads;   // a block; of kRowPerGroup, a row
  int64_t kept;  // vectors of 16 bytes of each row in shared memory
};

constexpr int64_t kPart = 8192;         // classes
constexpr int64_t kLongBy = 1024;       // classes beyond so many times the rows are many
constexpr int64_t kOtherShared = 2048;  // bytes a block: what the kernels declare, and CUDA's own

// `vectors`: the whole ones of a row, at the most; `held`: vectors that a thread holds; `shared`: bytes of shared
// memory that a block may have.
inline LossPlan plan_loss(int64_t rows, int64_t classes, int64_t vectors, int64_t held, int64_t shared) {
  if (classes > 2 * kPart && classes > kLongBy * rows) return {Mapping::kPartPerBlock, 256, 0};
  if (vectors <= 32 * held) {
    int lanes = 2;
    while (lanes * held < vectors) lanes *= 2;
    return {Mapping::kRowPerGroup, lanes, 0};
  }
  const auto room = [&](int64_t blocks) { return (shared / blocks - kOtherShared) / 16; };
  const int64_t wanted = (vectors + held - 1) / held;
  if (wanted <= 512 || (wanted <= 1024 && vectors > room(2))) {
    return {Mapping::kRowPerBlock, static_cast<int>((wanted + 31) / 32 * 32), 0};
  }
  for (int blocks = 4; blocks > 1; blocks /= 2) {
    if (vectors <= room(blocks)) return {Mapping::kRowInShared, 1024 / blocks, vectors};
  }
  return {Mapping::kRowInShared, 1024, vectors < room(1) ? vectors : room(1)};
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LOSS_PLAN_H_

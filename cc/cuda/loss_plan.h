// How the threads of a device share the rows of the fused loss: by the shape alone, so that the same batch is computed
// in the same order each time.
//
//   row per warp     short rows: eight to a block, which has no other use for so many threads
//   row per block    all others; as many threads as make 1024 a multiprocessor, as the blocks that its shared memory
//                    holds at once are 4, 2 or 1. What of the row fits there is read from memory once, the rest a
//                    second time, from the cache if it is still there
//   part per block   rows too few to fill the device, or so long that little of them would stay: each part is read
//                    twice, but all of the device reads
#ifndef LSOFTMAX_CUDA_LOSS_PLAN_H_
#define LSOFTMAX_CUDA_LOSS_PLAN_H_

#include <stdint.h>

namespace lsoftmax {
namespace cuda {

enum class Mapping { kRowPerWarp, kRowPerBlock, kPartPerBlock };

struct LossPlan {
  Mapping mapping;
  int threads;   // a block
  int64_t kept;  // vectors of 16 bytes of each row in shared memory
};

constexpr int64_t kRowOfWarp = 256;     // vectors: 4 KB
constexpr int64_t kPart = 8192;         // classes
constexpr int64_t kLongBy = 1024;       // classes beyond so many times the rows are many
constexpr int64_t kOtherShared = 2048;  // bytes a block: what the kernels declare, and CUDA's own

// `vectors`: what the longest row touches; `shared`: bytes of shared memory that a block may have.
inline LossPlan plan_loss(int64_t rows, int64_t classes, int64_t vectors, int64_t shared) {
  if (classes > 2 * kPart && classes > kLongBy * rows) return {Mapping::kPartPerBlock, 256, 0};
  if (vectors <= kRowOfWarp) return {Mapping::kRowPerWarp, 256, vectors};
  for (int blocks = 4; blocks > 1; blocks /= 2) {
    if (vectors <= (shared / blocks - kOtherShared) / 16) return {Mapping::kRowPerBlock, 1024 / blocks, vectors};
  }
  const int64_t room = (shared - kOtherShared) / 16;
  return {Mapping::kRowPerBlock, 1024, vectors < room ? vectors : room};
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LOSS_PLAN_H_

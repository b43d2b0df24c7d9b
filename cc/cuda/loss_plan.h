// How a device's threads share the rows of the fused loss: by the shape and by what the device has, so that the same
// batch is computed in the same order each time.
//
//   row per group    rows that some lanes of a warp hold in registers: 2, 4, .. 32 lanes, several rows a block
//   row per block    rows that a block holds in registers: 64, 96, .. 1024 threads
//   row per cluster  longer ones, where blocks form clusters: the smallest cluster, of 1, 2, 4, 8 or 16 blocks, whose
//                    shared memory has room for 7/8 of the row, or the largest if it has for 3/4. As many clusters as
//                    the device holds at once go through the rows. Few rows: up to 8 blocks, so that more of the device
//                    reads
//   row in shared    the same by one block where there are no clusters: what of the row fits in its shared memory is
//                    read from memory once, the rest a second time, from the cache if it is still there
//   part per block   rows too few to fill the device, or so long that little of them would stay: each part is read
//                    twice, but all of the device reads
//
// As many threads as make 1024 a multiprocessor, as the blocks that its shared memory holds at once are 4, 2 or 1.
// While one row waits for its sums, another is to read: more than 512 threads hold a row only where shared memory
// would hold no two.
#ifndef LSOFTMAX_CUDA_LOSS_PLAN_H_
#define LSOFTMAX_CUDA_LOSS_PLAN_H_

#include <stdint.h>

namespace lsoftmax {
namespace cuda {

enum class Mapping { kRowPerGroup, kRowPerBlock, kRowInShared, kPartPerBlock, kRowPerCluster };

struct LossPlan {
  Mapping mapping;
  int threads;       // a block; of kRowPerGroup, a row
  int64_t kept;      // vectors of 16 bytes that a block keeps in shared memory
  int blocks = 1;    // a row
  int64_t part = 0;  // of kRowPerCluster: vectors of a block, at the most
};

// What plans depend on, of a device.
struct LossDevice {
  int64_t shared;  // bytes of shared memory that a block may have
  int multiprocessors;
  int most_blocks;  // that a cluster of blocks with all of that memory may have; 0: there are no clusters
};

constexpr int64_t kPart = 8192;         // classes
constexpr int64_t kLongBy = 1024;       // classes beyond so many times the rows are many
constexpr int64_t kOtherShared = 2560;  // bytes a block: what the kernels declare, and CUDA's own
constexpr int kMostCopies = 16;         // bulk copies a row, of 2 vectors a thread or more
constexpr int kUsualBlocks = 8;         // of a cluster, on every device that has them

// Vectors that a block has room for, where a multiprocessor is to hold so many.
inline int64_t room_of_block(const LossDevice& device, int64_t blocks) {
  return (device.shared / blocks - kOtherShared) / 16;
}

// By a cluster of so many blocks.
inline LossPlan plan_cluster(int64_t vectors, int blocks, const LossDevice& device) {
  const int64_t part = (vectors + blocks - 1) / blocks;
  int side_by_side = 4;
  while (side_by_side > 1 && part > room_of_block(device, side_by_side)) side_by_side /= 2;
  const int threads = 1024 / side_by_side;
  const int64_t room = room_of_block(device, side_by_side), most = kMostCopies * 2 * threads;
  const int64_t here = room < most ? room : most;
  return {Mapping::kRowPerCluster, threads, part < here ? part : here, blocks, part};
}

// Whether n of d parts of a row stay in shared memory.
inline bool keeps(const LossPlan& plan, int64_t n, int64_t d) { return d * plan.kept >= n * plan.part; }

// `vectors`: the whole ones of a row, at the most; `held`: vectors that a thread holds.
inline LossPlan plan_loss(int64_t rows, int64_t classes, int64_t vectors, int64_t held, const LossDevice& device) {
  const bool is_long = classes > 2 * kPart && classes > kLongBy * rows;
  if (vectors <= 32 * held) {
    int lanes = 2;
    while (lanes * held < vectors) lanes *= 2;
    return {Mapping::kRowPerGroup, lanes, 0};
  }
  const int64_t wanted = (vectors + held - 1) / held;
  const int in_registers = static_cast<int>((wanted + 31) / 32 * 32);
  if (device.most_blocks > 0) {
    if (wanted <= 512 && !is_long) return {Mapping::kRowPerBlock, in_registers, 0};
    int blocks = 1;
    while (blocks < device.most_blocks && !keeps(plan_cluster(vectors, blocks, device), 7, 8)) blocks *= 2;
    const int usual = device.most_blocks < kUsualBlocks ? device.most_blocks : kUsualBlocks;
    while (blocks < usual && 2 * rows * blocks <= device.multiprocessors) blocks *= 2;
    const LossPlan plan = plan_cluster(vectors, blocks, device);
    const bool fills = !is_long || 2 * rows * blocks >= device.multiprocessors;
    return keeps(plan, 3, 4) && fills ? plan : LossPlan{Mapping::kPartPerBlock, 256, 0};
  }
  if (is_long) return {Mapping::kPartPerBlock, 256, 0};
  const auto room = [&](int64_t blocks) { return room_of_block(device, blocks); };
  if (wanted <= 512 || (wanted <= 1024 && vectors > room(2))) return {Mapping::kRowPerBlock, in_registers, 0};
  for (int blocks = 4; blocks > 1; blocks /= 2) {
    if (vectors <= room(blocks)) return {Mapping::kRowInShared, 1024 / blocks, vectors};
  }
  return {Mapping::kRowInShared, 1024, vectors < room(1) ? vectors : room(1)};
}

}  // namespace cuda
}  // namespace lsoftmax

#endif  // LSOFTMAX_CUDA_LOSS_PLAN_H_

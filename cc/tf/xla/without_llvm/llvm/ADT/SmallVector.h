// See ArrayRef.h.
#ifndef LSOFTMAX_TF_XLA_WITHOUT_LLVM_SMALL_VECTOR_H_
#define LSOFTMAX_TF_XLA_WITHOUT_LLVM_SMALL_VECTOR_H_

#include <vector>

namespace llvm {

template <typename T>
using SmallVector = std::vector<T>;

}  // namespace llvm

#endif  // LSOFTMAX_TF_XLA_WITHOUT_LLVM_SMALL_VECTOR_H_

// What XLA's headers of TensorFlow 2.19 name of LLVM, whose headers TensorFlow comes without: enough to declare, in
// xla/stream_executor/gpu/tma_metadata.h, what this library neither makes nor calls.
#ifndef LSOFTMAX_TF_XLA_WITHOUT_LLVM_ARRAY_REF_H_
#define LSOFTMAX_TF_XLA_WITHOUT_LLVM_ARRAY_REF_H_

#include <vector>

namespace llvm {

template <typename T>
struct ArrayRef {
  ArrayRef(const std::vector<T>&) {}
};

}  // namespace llvm

#endif  // LSOFTMAX_TF_XLA_WITHOUT_LLVM_ARRAY_REF_H_

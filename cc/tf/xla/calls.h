// The ops under XLA as calls of our own kernels, on the CPU and on the GPU, where XLA can make them: they take less
// time than what XLA makes of the formulas.
//
// calls.cc writes the calls into the graph; handlers.cc and cuda_handlers.cc are what they call. Between them lies
// XLA's typed foreign function interface, by which a handler gets XLA's own threads, or its stream. On the CPU it can
// fail, too: as everywhere else there, a label out of range, a negative lambda or a block of columns that does not fit
// is an error that names it. On the GPU, where no value is known to the host, it makes NaNs.
#ifndef LSOFTMAX_TF_XLA_CALLS_H_
#define LSOFTMAX_TF_XLA_CALLS_H_

#include "tf/xla/handlers.h"
#include "tf/xla/kernel.h"

namespace lsoftmax {

// Whether the op in hand can be a call of a handler: somebody answers it on this device (handlers.h; TensorFlow before
// 2.20 comes without what handlers are made of), all shapes are known, since XLA bounds those of formulas alone, and
// the environment variable LSOFTMAX_XLA_CALLS is not OFF.
bool can_call(const Node& node, std::string_view handler);

// Writes the call of the op in hand, all outputs included.
absl::Status write_call(const Node& node, const Call& call);

// The same of the ops whose call is not all.
absl::Status write_sums(const Node& node);
absl::Status write_products_grad(const Node& node);
absl::Status write_bias_grad(const Node& node);
absl::Status write_finish(const Node& node, int64_t depth);

// Writes the call that judges where a block of columns begins, which is `first`.
absl::Status write_first_column(const Node& node, XlaOp* first);

// A call where it can be one, else the formula.
template <const Call& kCall, absl::Status (*kFormula)(const Node&)>
absl::Status call_or_formula(const Node& node) {
  return can_call(node, kCall.handler) ? write_call(node, kCall) : kFormula(node);
}
template <const Call& kCall, absl::Status (*kWrite)(const Node&), absl::Status (*kFormula)(const Node&)>
absl::Status written_or_formula(const Node& node) {
  return can_call(node, kCall.handler) ? kWrite(node) : kFormula(node);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_CALLS_H_

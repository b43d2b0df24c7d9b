// The fused loss on the CPU, under XLA: our own kernels as custom calls, where XLA can make them. They take less time
// than what XLA makes of the formulas.
//
// calls.cc writes the calls into the graph; handlers.cc is what they call. Between them lies XLA's typed foreign
// function interface, by which a handler gets XLA's own threads, and can fail: as everywhere else on the CPU, a label
// out of range, a negative lambda or a block of columns that does not fit is an error that names it.
#ifndef LSOFTMAX_TF_XLA_CALLS_H_
#define LSOFTMAX_TF_XLA_CALLS_H_

#include "tf/xla/kernel.h"

namespace lsoftmax {

// Whether the op in hand can be a call: the build has the interface (TensorFlow before 2.20 comes without its header),
// all shapes are known, since XLA bounds those of formulas alone, and the environment variable LSOFTMAX_XLA_CALLS is
// not OFF.
bool can_call(const Node& node);

// Each writes the call of its op, all outputs included.
absl::Status call_loss(const Node& node);
absl::Status call_features_grad(const Node& node);
absl::Status call_weights_grad(const Node& node);
absl::Status call_set_columns(const Node& node);

// A call where it can be one, else the formula.
template <absl::Status (*kCall)(const Node&), absl::Status (*kFormula)(const Node&)>
absl::Status call_or_formula(const Node& node) {
  return can_call(node) ? kCall(node) : kFormula(node);
}

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_CALLS_H_

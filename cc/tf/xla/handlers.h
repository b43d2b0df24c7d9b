// What a call is to both who writes it and who answers it: a handler's name, and the arrays (core/arrays.h) that it
// takes and gives, in this order. The first result takes the first operand's buffer; if they are one array, the kernel
// changes it.
#ifndef LSOFTMAX_TF_XLA_HANDLERS_H_
#define LSOFTMAX_TF_XLA_HANDLERS_H_

#include <array>
#include <string_view>

#include "core/arguments.h"

namespace lsoftmax {

struct Call {
  const char* handler;  // before "_" and XLA's word for the data type
  Kernel kernel;
  std::array<const char*, 8> operands, results;  // until a null
};

inline constexpr Call kLossCall = {
    "lsoftmax_loss",
    Kernel::geometry_and_loss,
    {"products", "features", "weights", "labels", "bias", "lam"},
    {"products_grad", "loss", "geometry", "geometry_grad", "target_grad", "target_weights", "predicted", "grad_unit"}};
inline constexpr Call kFeaturesGradCall = {
    "lsoftmax_features_grad",
    Kernel::features_grad,
    {"features_grad", "features", "weights", "labels", "geometry_grad", "loss_grad", "grad_unit", "target_weights"},
    {"features_grad"}};
inline constexpr Call kWeightsGradCall = {
    "lsoftmax_weights_grad",
    Kernel::weights_grad,
    {"weights_grad", "features", "weights", "labels", "geometry_grad", "loss_grad", "grad_unit", "target_weights"},
    {"weights_grad"}};

// Of the place of a block of columns: hands it on if it is one.
inline constexpr const char* kFirstColumnHandler = "lsoftmax_first_column";

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_HANDLERS_H_

// What a call is to both who writes it (calls.cc) and who answers it: a handler's name, and the arrays (core/arrays.h)
// that it takes and gives, in this order. The same calls are answered by the CPU's handlers (handlers.cc), by the GPU's
// (cuda_handlers.cc), by both or by neither.
#ifndef LSOFTMAX_TF_XLA_HANDLERS_H_
#define LSOFTMAX_TF_XLA_HANDLERS_H_

#include <array>
#include <string_view>
#include <vector>

#include "core/arguments.h"

namespace lsoftmax {

using Names = std::array<const char*, 8>;  // until a null

struct Call {
  const char* handler;  // before "_" and XLA's word for the data type
  Kernel kernel;
  const char* first;  // what the op calls the first operand
  Names operands, results;
  bool in_place = true;  // the first result takes the first operand's buffer; if they are one array, it is changed
};

// Whether a kernel may have a range of the classes alone: the attributes first_class and num_classes of its call.
constexpr bool takes_range(Kernel kernel) {
  return kernel == Kernel::geometry || kernel == Kernel::features_grad || kernel == Kernel::weights_grad;
}

inline constexpr Call kGeometryCall = {
    "lsoftmax_geometry", Kernel::geometry, "features", {"features", "weights", "labels"}, {"geometry"}, false};
inline constexpr Call kClassFactorsCall = {
    "lsoftmax_class_factors", Kernel::class_factors, "weights", {"weights"}, {"class_factors"}, false};
inline constexpr Call kFeaturesGradCall = {
    "lsoftmax_features_grad",
    Kernel::features_grad,
    "products_features_grad",
    {"features_grad", "features", "weights", "labels", "geometry_grad", "loss_grad", "grad_unit", "target_weights"},
    {"features_grad"}};
inline constexpr Call kWeightsGradCall = {
    "lsoftmax_weights_grad",
    Kernel::weights_grad,
    "products_weights_grad",
    {"weights_grad", "features", "weights", "labels", "geometry_grad", "loss_grad", "grad_unit", "target_weights"},
    {"weights_grad"}};
inline constexpr Call kLogitsCall = {
    "lsoftmax_logits", Kernel::logits, "products", {"logits", "labels", "geometry", "lam", "terms"}, {"logits"}};
inline constexpr Call kLogitsGradCall = {"lsoftmax_logits_grad",
                                         Kernel::logits_grad,
                                         "logits_grad",
                                         {"products_grad", "labels", "geometry", "lam", "terms"},
                                         {"products_grad", "geometry_grad"}};
inline constexpr Call kLossCall = {
    "lsoftmax_loss",
    Kernel::geometry_and_loss,
    "products",
    {"products", "features", "weights", "labels", "bias", "lam", "terms", "class_factors"},
    {"products_grad", "loss", "geometry", "geometry_grad", "target_grad", "target_weights", "predicted", "grad_unit"}};
inline constexpr Call kBiasGradCall = {
    "lsoftmax_bias_grad", Kernel::bias_grad,
    "products_grad",      {"products_grad", "labels", "loss_grad", "target_grad", "grad_unit"},
    {"bias_grad"},        false};
inline constexpr Call kSumsCall = {"lsoftmax_sums",
                                   Kernel::sums,
                                   "sums_before",
                                   {"sums", "products", "labels", "bias", "class_factors", "terms", "geometry"},
                                   {"sums"}};
inline constexpr Call kFinishCall = {"lsoftmax_finish",
                                     Kernel::finish,
                                     "sums",
                                     {"sums", "geometry", "labels", "bias", "lam", "terms"},
                                     {"loss", "normalizer", "geometry_grad", "target_grad", "predicted", "grad_unit"},
                                     false};
inline constexpr Call kProductsGradCall = {
    "lsoftmax_products_grad",
    Kernel::products_grad,
    "products",
    {"products", "labels", "bias", "class_factors", "terms", "geometry", "normalizer"},
    {"products_grad"}};

// Of the place of a block of columns: hands it on if it is one.
inline constexpr const char* kFirstColumnHandler = "lsoftmax_first_column";

// Who answers calls on a device: the handlers of these names. The file that registers them says so as the library is
// loaded; until then it is nobody.
struct Answers {
  std::vector<std::string_view> handlers;

  // The bytes of a kernel's workspace, which the handler gets as one result more, of U8. Null: it wants none.
  int64_t (*workspace_of)(Kernel, int64_t rows, int64_t depth, int64_t classes) = nullptr;
};
Answers& answers_on(bool gpu);  // calls.cc

}  // namespace lsoftmax

#endif  // LSOFTMAX_TF_XLA_HANDLERS_H_

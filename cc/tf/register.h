// Registers one op kernel for every data type and label type.
//
// KERNEL is a class template over <backend, data type>; both of an op's type attributes are called T
// and Tlabels.
#ifndef LSOFTMAX_TF_REGISTER_H_
#define LSOFTMAX_TF_REGISTER_H_

#include "tensorflow/core/framework/op_kernel.h"
#include "tf/cpu.h"
#include "tf/inputs.h"

namespace lsoftmax {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

}  // namespace lsoftmax

#define LSOFTMAX_REGISTER_CPU_(OP, KERNEL, TYPE)                                               \
  REGISTER_KERNEL_BUILDER(Name(OP).Device(::tensorflow::DEVICE_CPU).TypeConstraint<TYPE>("T"), \
                          KERNEL<::lsoftmax::Cpu, TYPE>)

#define LSOFTMAX_REGISTER_KERNELS(OP, KERNEL)            \
  LSOFTMAX_REGISTER_CPU_(OP, KERNEL, ::Eigen::half);     \
  LSOFTMAX_REGISTER_CPU_(OP, KERNEL, ::Eigen::bfloat16); \
  LSOFTMAX_REGISTER_CPU_(OP, KERNEL, float);             \
  LSOFTMAX_REGISTER_CPU_(OP, KERNEL, double)

#endif  // LSOFTMAX_TF_REGISTER_H_

// Registers one op kernel for every data type and label type, on the CPU and, where it was built with CUDA, on the GPU.
//
// KERNEL is a class template over <backend, data type>; both of an op's type attributes are called T
// and Tlabels. What stands behind it is said of every kernel: .HostMemory("input").
#ifndef LSOFTMAX_TF_REGISTER_H_
#define LSOFTMAX_TF_REGISTER_H_

#include "tensorflow/core/framework/op_kernel.h"
#include "tf/cpu.h"
#ifdef LSOFTMAX_CUDA
#include "tf/gpu.h"
#endif
#include "tf/inputs.h"

namespace lsoftmax {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

}  // namespace lsoftmax

#define LSOFTMAX_REGISTER_KERNEL_(OP, KERNEL, BACKEND, DEVICE, TYPE, ...)                              \
  REGISTER_KERNEL_BUILDER(Name(OP).Device(::tensorflow::DEVICE).TypeConstraint<TYPE>("T") __VA_ARGS__, \
                          KERNEL<::lsoftmax::BACKEND, TYPE>)

#define LSOFTMAX_REGISTER_ON_(OP, KERNEL, BACKEND, DEVICE, ...)                           \
  LSOFTMAX_REGISTER_KERNEL_(OP, KERNEL, BACKEND, DEVICE, ::Eigen::half, __VA_ARGS__);     \
  LSOFTMAX_REGISTER_KERNEL_(OP, KERNEL, BACKEND, DEVICE, ::Eigen::bfloat16, __VA_ARGS__); \
  LSOFTMAX_REGISTER_KERNEL_(OP, KERNEL, BACKEND, DEVICE, float, __VA_ARGS__);             \
  LSOFTMAX_REGISTER_KERNEL_(OP, KERNEL, BACKEND, DEVICE, double, __VA_ARGS__)

#ifdef LSOFTMAX_CUDA
#define LSOFTMAX_REGISTER_KERNELS(OP, KERNEL, ...)                 \
  LSOFTMAX_REGISTER_ON_(OP, KERNEL, Cpu, DEVICE_CPU, __VA_ARGS__); \
  LSOFTMAX_REGISTER_ON_(OP, KERNEL, Gpu, DEVICE_GPU, __VA_ARGS__)
#else
#define LSOFTMAX_REGISTER_KERNELS(OP, KERNEL, ...) LSOFTMAX_REGISTER_ON_(OP, KERNEL, Cpu, DEVICE_CPU, __VA_ARGS__)
#endif

#endif  // LSOFTMAX_TF_REGISTER_H_

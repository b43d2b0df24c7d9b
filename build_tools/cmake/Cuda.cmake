# The CUDA kernels, twice:
#
#   lsoftmax_cuda           compiled by nvcc, where LSOFTMAX_CUDA and find_nvcc.py say so: a library of its own,
#                           _lsoftmax_cuda.so, so that the module, the op library and XLA's share one copy of the
#                           machine code, which all find by its place
#   lsoftmax_cuda_on_cpu    compiled by the host compiler over cc/cuda/testing, where LSOFTMAX_TESTING says so
#
# CUDA's runtime is in _lsoftmax_cuda.so, statically, and nobody sees it: the code of a compiler is launched by that
# compiler's own runtime, whatever else the process holds. It looks for the driver when a kernel is first launched, so
# that the library loads on machines without one. And it wants the driver that the machine code wants, too: one of the
# compiler's major version of CUDA, or later. Who has an older one compiles with an older nvcc. (Linked into the op
# library it would be overruled, silently: libtensorflow_framework exports functions of the same names, which load
# TensorFlow's own libcudart.)
#
# build_info_cuda: what lsoftmax_cuda is, as JSON.
set(cuda_sources
  cc/cuda/geometry.cu
  cc/cuda/target.cu
  cc/cuda/features_grad.cu
  cc/cuda/loss.cu
  cc/cuda/columns.cu
  cc/cuda/bias_grad.cu
  cc/cuda/label_order.cu
  cc/cuda/weights_grad.cu
  cc/cuda/gradients.cu)
list(TRANSFORM cuda_sources PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/)

set(build_info_cuda null)
if(NOT LSOFTMAX_CUDA STREQUAL OFF)
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/../find_nvcc.py
    OUTPUT_VARIABLE nvcc_json ERROR_VARIABLE nvcc_reason RESULT_VARIABLE nvcc_result
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
  if(nvcc_result EQUAL 0)
    string(JSON CMAKE_CUDA_COMPILER GET "${nvcc_json}" nvcc)
    string(JSON CMAKE_CUDA_FLAGS GET "${nvcc_json}" flags)
    string(JSON nvcc_version GET "${nvcc_json}" version)
    set(architectures ${LSOFTMAX_CUDA_ARCHITECTURES})
    if(NOT architectures)
      string(JSON known GET "${nvcc_json}" architectures)
      string(REGEX MATCHALL "[0-9]+" architectures "${known}")
      list(POP_BACK architectures newest)
      list(TRANSFORM architectures APPEND -real)
      list(APPEND architectures ${newest})  # machine code and PTX
    endif()
    set(CMAKE_CUDA_ARCHITECTURES ${architectures})
    enable_language(CUDA)
    add_library(lsoftmax_cuda SHARED ${cuda_sources})
    target_include_directories(lsoftmax_cuda PUBLIC cc)
    target_compile_options(lsoftmax_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
    set_target_properties(lsoftmax_cuda PROPERTIES
                          CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static)
    target_link_options(lsoftmax_cuda PRIVATE LINKER:--no-undefined)
    lsoftmax_export(lsoftmax_cuda _lsoftmax_cuda)
    string(REPLACE ";" "\", \"" names "${architectures}")
    set(build_info_cuda "{\"nvcc\": \"${nvcc_version}\", \"architectures\": [\"${names}\"]}")
    message(STATUS "lsoftmax_op: CUDA ${nvcc_version} for ${architectures}")
  elseif(LSOFTMAX_CUDA STREQUAL ON OR NOT "$ENV{CUDACXX}" STREQUAL "")  # who names a compiler wants it
    message(FATAL_ERROR "LSOFTMAX_CUDA=${LSOFTMAX_CUDA}, but: ${nvcc_reason}")
  else()
    message(STATUS "lsoftmax_op: building without CUDA (LSOFTMAX_CUDA=AUTO). ${nvcc_reason}")
  endif()
endif()

if(LSOFTMAX_TESTING)
  # Sources of its own: a file has one language a directory, and here it is C++.
  foreach(source IN LISTS cuda_sources)
    get_filename_component(name ${source} NAME_WE)
    set(host_source ${CMAKE_CURRENT_BINARY_DIR}/cuda_on_cpu/${name}.cc)
    file(GENERATE OUTPUT ${host_source} CONTENT "#include \"${source}\"\n")
    list(APPEND host_sources ${host_source})
  endforeach()
  add_library(lsoftmax_cuda_on_cpu STATIC ${host_sources})
  target_include_directories(lsoftmax_cuda_on_cpu PRIVATE cc/cuda/testing PUBLIC cc)
  target_compile_options(lsoftmax_cuda_on_cpu PRIVATE -Wno-unknown-pragmas)
  target_link_libraries(lsoftmax_cuda_on_cpu PUBLIC lsoftmax_options)
endif()

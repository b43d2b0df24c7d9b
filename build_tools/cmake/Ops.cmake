# lsoftmax_add_ops(): the op libraries for the TensorFlow that lsoftmax_find_tensorflow has described, and
# _build_info.json, which says what they are; all in a folder of its name, from where they find _lsoftmax_core.so and
# _lsoftmax_cuda.so. Nothing but these is compiled anew for a further TensorFlow.
set(ops_sources
  cc/tf/inputs.cc
  cc/tf/geometry.cc
  cc/tf/logits.cc
  cc/tf/loss.cc
  cc/tf/blocks.cc
  cc/tf/filter.cc)
set(xla_sources
  cc/tf/inputs.cc
  cc/tf/xla/hlo.cc
  cc/tf/xla/margin.cc
  cc/tf/xla/kernel.cc
  cc/tf/xla/calls.cc
  cc/tf/xla/geometry.cc
  cc/tf/xla/logits.cc
  cc/tf/xla/loss.cc
  cc/tf/xla/blocks.cc
  cc/tf/xla/filter.cc)

function(lsoftmax_add_ops)
  set(tf ${TensorFlow_FOLDER})
  lsoftmax_add_op_library(_lsoftmax_ops framework ${ops_sources})
  target_link_libraries(_lsoftmax_ops-${tf} PRIVATE lsoftmax_core)
  target_precompile_headers(_lsoftmax_ops-${tf} PRIVATE <tensorflow/core/framework/op_kernel.h>)
  if(TARGET lsoftmax_cuda)
    target_sources(_lsoftmax_ops-${tf} PRIVATE cc/tf/gpu.cc)
    target_link_libraries(_lsoftmax_ops-${tf} PRIVATE lsoftmax_cuda)
    target_compile_definitions(_lsoftmax_ops-${tf} PRIVATE LSOFTMAX_CUDA)
  endif()

  set(build_info_xla "no: built without it")
  set(build_info_xla_calls false)
  if(TARGET ${tf}::xla AND NOT LSOFTMAX_XLA STREQUAL OFF)
    set(build_info_xla yes)
    add_library(lsoftmax_xla_ops-${tf} OBJECT ${xla_sources})
    target_link_libraries(lsoftmax_xla_ops-${tf} PUBLIC lsoftmax_options ${tf}::xla)
    target_precompile_headers(lsoftmax_xla_ops-${tf} PRIVATE <tensorflow/compiler/tf2xla/xla_op_kernel.h>)
    lsoftmax_add_op_library(_lsoftmax_xla xla $<TARGET_OBJECTS:lsoftmax_xla_ops-${tf}>)
    if(EXISTS ${TensorFlow_INCLUDE_DIR}/xla/ffi/api/ffi.h)
      set(build_info_xla_calls true)
      target_sources(_lsoftmax_xla-${tf} PRIVATE cc/tf/xla/handlers.cc)
      target_link_libraries(_lsoftmax_xla-${tf} PRIVATE lsoftmax_core)
      if(TARGET lsoftmax_cuda)
        target_sources(_lsoftmax_xla-${tf} PRIVATE cc/tf/xla/cuda_handlers.cc)
        target_link_libraries(_lsoftmax_xla-${tf} PRIVATE lsoftmax_cuda)
      endif()
      if(TARGET lsoftmax_cuda_on_cpu)
        # The GPU's handlers in the place of the CPU's, for the tests.
        lsoftmax_add_op_library(_lsoftmax_xla_cuda_on_cpu xla
                                $<TARGET_OBJECTS:lsoftmax_xla_ops-${tf}> cc/tf/xla/cuda_handlers.cc)
        target_compile_definitions(_lsoftmax_xla_cuda_on_cpu-${tf} PRIVATE LSOFTMAX_XLA_CUDA_ON_CPU)
        target_link_libraries(_lsoftmax_xla_cuda_on_cpu-${tf} PRIVATE lsoftmax_cuda_on_cpu)
      endif()
    endif()
  elseif(LSOFTMAX_XLA STREQUAL ON)
    message(FATAL_ERROR "LSOFTMAX_XLA=ON, but: ${TensorFlow_XLA_REASON}")
  elseif(TensorFlow_XLA_REASON)
    set(build_info_xla "no: ${TensorFlow_XLA_REASON}")
  endif()

  lsoftmax_json(build_info_xla "${build_info_xla}")
  configure_file(build_tools/cmake/ops_build_info.json.in ${tf}/_build_info.json @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${tf}/_build_info.json DESTINATION ${tf})
endfunction()

# lsoftmax_add_op_library(NAME PART SOURCE...): the target NAME-tf-2.21, a module that links that PART of TensorFlow.
function(lsoftmax_add_op_library name part)
  set(target ${name}-${TensorFlow_FOLDER})
  add_library(${target} MODULE ${ARGN})
  set_target_properties(${target} PROPERTIES
    PREFIX "" OUTPUT_NAME ${name} LIBRARY_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/${TensorFlow_FOLDER}
    LINKER_LANGUAGE CXX INSTALL_RPATH $ORIGIN/..)
  target_link_libraries(${target} PRIVATE lsoftmax_options ${TensorFlow_FOLDER}::${part})
  install(TARGETS ${target} DESTINATION ${TensorFlow_FOLDER})
endfunction()

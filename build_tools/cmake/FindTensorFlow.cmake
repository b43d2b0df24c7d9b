# Finds the TensorFlow of the Python environment that asks, by build_tools/find_tensorflow.py.
#
#   TensorFlow_FOUND, TensorFlow_VERSION
#   TensorFlow_REASON        why it was not found, for people
#   TensorFlow::framework    headers, flags and libtensorflow_framework
#   TensorFlow::xla          the same for kernels that write HLO, where its parts are there, and else
#   TensorFlow_XLA_REASON    why not, for people
execute_process(
  COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/../find_tensorflow.py
  OUTPUT_VARIABLE TensorFlow_JSON
  ERROR_VARIABLE TensorFlow_REASON
  RESULT_VARIABLE TensorFlow_RESULT
  OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
if(TensorFlow_RESULT EQUAL 0)
  string(JSON TensorFlow_VERSION GET "${TensorFlow_JSON}" version)
  string(JSON TensorFlow_INCLUDE_DIR GET "${TensorFlow_JSON}" include_dir)
  string(JSON TensorFlow_LIBRARY GET "${TensorFlow_JSON}" library)
  string(JSON TensorFlow_COMPILE_OPTIONS GET "${TensorFlow_JSON}" compile_options)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorFlow
  REQUIRED_VARS TensorFlow_LIBRARY TensorFlow_INCLUDE_DIR
  VERSION_VAR TensorFlow_VERSION
  REASON_FAILURE_MESSAGE "${TensorFlow_REASON}")

if(TensorFlow_FOUND AND NOT TARGET TensorFlow::framework)
  add_library(TensorFlow::framework SHARED IMPORTED)
  set_target_properties(TensorFlow::framework PROPERTIES
    IMPORTED_LOCATION ${TensorFlow_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${TensorFlow_INCLUDE_DIR}
    INTERFACE_COMPILE_OPTIONS "${TensorFlow_COMPILE_OPTIONS}")
endif()

# XLA's headers include those of two libraries that come with TensorFlow, but not on its include path.
if(TensorFlow_FOUND AND NOT TARGET TensorFlow::xla)
  cmake_path(GET TensorFlow_LIBRARY PARENT_PATH TensorFlow_DIRECTORY)
  set(TensorFlow_XLA_LIBRARY ${TensorFlow_DIRECTORY}/libtensorflow_cc.so.2)
  set(TensorFlow_XLA_INCLUDE_DIRS
    ${TensorFlow_INCLUDE_DIR}/external/highwayhash ${TensorFlow_INCLUDE_DIR}/external/farmhash_archive/src)
  foreach(needed
      ${TensorFlow_XLA_LIBRARY}
      ${TensorFlow_INCLUDE_DIR}/tensorflow/compiler/tf2xla/xla_op_kernel.h
      ${TensorFlow_INCLUDE_DIR}/external/highwayhash/highwayhash/arch_specific.h
      ${TensorFlow_INCLUDE_DIR}/external/farmhash_archive/src/farmhash.h)
    if(NOT EXISTS ${needed})
      set(TensorFlow_XLA_REASON "TensorFlow ${TensorFlow_VERSION} came without ${needed}")
    endif()
  endforeach()
  if(NOT TensorFlow_XLA_REASON)
    add_library(TensorFlow::xla SHARED IMPORTED)
    set_target_properties(TensorFlow::xla PROPERTIES
      IMPORTED_LOCATION ${TensorFlow_XLA_LIBRARY}
      INTERFACE_INCLUDE_DIRECTORIES "${TensorFlow_XLA_INCLUDE_DIRS}"
      INTERFACE_LINK_LIBRARIES TensorFlow::framework)
  endif()
endif()

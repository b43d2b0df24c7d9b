# lsoftmax_find_tensorflow(FOLDER): describes a TensorFlow, by build_tools/find_tensorflow.py: the one in FOLDER, installed
# or unpacked; or, if FOLDER is the word "environment", that of the Python environment that asks. The caller sees
#
#   TensorFlow_FOUND, TensorFlow_VERSION, TensorFlow_INCLUDE_DIR
#   TensorFlow_REASON        why it was not found, for people
#   TensorFlow_FOLDER        tf-2.21, of 2.21.0: where the package has what is built for it, and
#   ${TensorFlow_FOLDER}::framework    headers, flags and libtensorflow_framework
#   ${TensorFlow_FOLDER}::xla          the same for kernels that write HLO, where its parts are there, and else
#   TensorFlow_XLA_REASON    why not, for people
function(lsoftmax_find_tensorflow folder)
  if(folder STREQUAL environment)
    set(folder)
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../find_tensorflow.py ${folder}
    WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE json ERROR_VARIABLE TensorFlow_REASON RESULT_VARIABLE result
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_STRIP_TRAILING_WHITESPACE)
  set(TensorFlow_FOUND FALSE)
  set(TensorFlow_XLA_REASON "")
  if(result EQUAL 0)
    set(TensorFlow_FOUND TRUE)
    string(JSON TensorFlow_VERSION GET "${json}" version)
    string(JSON TensorFlow_INCLUDE_DIR GET "${json}" include_dir)
    string(JSON library GET "${json}" library)
    string(JSON options GET "${json}" compile_options)
    string(REGEX REPLACE "^([0-9]+\\.[0-9]+).*" "tf-\\1" TensorFlow_FOLDER "${TensorFlow_VERSION}")
    if(TARGET ${TensorFlow_FOLDER}::framework)
      message(FATAL_ERROR "LSOFTMAX_TENSORFLOWS: expected one TensorFlow of a minor version, got a second one of "
                          "${TensorFlow_VERSION}: ${folder}")
    endif()
    message(STATUS "lsoftmax_op: TensorFlow ${TensorFlow_VERSION}, ${library}")
    add_library(${TensorFlow_FOLDER}::framework SHARED IMPORTED)
    set_target_properties(${TensorFlow_FOLDER}::framework PROPERTIES
      IMPORTED_LOCATION ${library}
      INTERFACE_INCLUDE_DIRECTORIES ${TensorFlow_INCLUDE_DIR}
      INTERFACE_COMPILE_OPTIONS "${options}")

    # XLA's headers include those of two libraries that come with TensorFlow, but not on its include path.
    cmake_path(GET library PARENT_PATH directory)
    set(xla_library ${directory}/libtensorflow_cc.so.2)
    set(xla_include_dirs
      ${TensorFlow_INCLUDE_DIR}/external/highwayhash ${TensorFlow_INCLUDE_DIR}/external/farmhash_archive/src)
    foreach(needed
        ${xla_library}
        ${TensorFlow_INCLUDE_DIR}/tensorflow/compiler/tf2xla/xla_op_kernel.h
        ${TensorFlow_INCLUDE_DIR}/external/highwayhash/highwayhash/arch_specific.h
        ${TensorFlow_INCLUDE_DIR}/external/farmhash_archive/src/farmhash.h)
      if(NOT EXISTS ${needed})
        set(TensorFlow_XLA_REASON "TensorFlow ${TensorFlow_VERSION} came without ${needed}")
      endif()
    endforeach()
    # Those of 2.19 include two of LLVM, too, which do not come with it.
    if(TensorFlow_VERSION MATCHES "^2\\.19\\.")
      list(APPEND xla_include_dirs ${CMAKE_CURRENT_SOURCE_DIR}/cc/tf/xla/without_llvm)
    endif()
    if(NOT TensorFlow_XLA_REASON)
      add_library(${TensorFlow_FOLDER}::xla SHARED IMPORTED)
      set_target_properties(${TensorFlow_FOLDER}::xla PROPERTIES
        IMPORTED_LOCATION ${xla_library}
        INTERFACE_INCLUDE_DIRECTORIES "${xla_include_dirs}"
        INTERFACE_LINK_LIBRARIES ${TensorFlow_FOLDER}::framework)
    endif()
  endif()
  foreach(result FOUND VERSION INCLUDE_DIR REASON FOLDER XLA_REASON)
    set(TensorFlow_${result} "${TensorFlow_${result}}" PARENT_SCOPE)
  endforeach()
endfunction()

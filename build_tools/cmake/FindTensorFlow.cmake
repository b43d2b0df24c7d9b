# Finds the TensorFlow of the Python environment that asks, by build_tools/find_tensorflow.py.
#
#   TensorFlow_FOUND, TensorFlow_VERSION
#   TensorFlow_REASON        why it was not found, for people
#   TensorFlow::framework    headers, flags and libtensorflow_framework
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

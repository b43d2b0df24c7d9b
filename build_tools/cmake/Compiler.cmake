# Refuses, in a sentence, what cannot compile the library: another system than 64-bit Linux, and compilers that are older
# than those it was compiled by.
if(NOT CMAKE_SYSTEM_NAME STREQUAL Linux OR NOT CMAKE_SIZEOF_VOID_P EQUAL 8)
  math(EXPR bits "8 * ${CMAKE_SIZEOF_VOID_P}")
  message(FATAL_ERROR "lsoftmax_op supports Linux in 64 bits; this is ${CMAKE_SYSTEM_NAME} in ${bits}.")
endif()
set(oldest_GNU 9)
set(oldest_Clang 11)
set(oldest ${oldest_${CMAKE_CXX_COMPILER_ID}})
if(oldest AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS oldest)
  message(FATAL_ERROR
    "The C++ compiler is too old: expected GCC ${oldest_GNU} or Clang ${oldest_Clang} or later, got "
    "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}). Install a later one beside it and "
    "name it by the environment variable CXX, as CXX=g++-12.")
endif()

# Has Ninja run no more compilers at once than the free memory holds (build_tools/jobs.py says how many). Whoever sets
# CMAKE_BUILD_PARALLEL_LEVEL knows better. Included before the targets whose compilers it is about.
if(CMAKE_GENERATOR STREQUAL Ninja AND "$ENV{CMAKE_BUILD_PARALLEL_LEVEL}" STREQUAL "")
  set(largest_part arrays)
  if(NOT LSOFTMAX_TF STREQUAL OFF)
    set(largest_part tensorflow)
    if(NOT LSOFTMAX_XLA STREQUAL OFF)
      set(largest_part xla)
    endif()
  endif()
  execute_process(
    COMMAND ${Python_EXECUTABLE} ${CMAKE_CURRENT_LIST_DIR}/../jobs.py ${largest_part}
    OUTPUT_VARIABLE jobs OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(jobs)
    set_property(GLOBAL PROPERTY JOB_POOLS compilers=${jobs})
    set(CMAKE_JOB_POOL_COMPILE compilers)
    cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
    if(jobs LESS cores)
      message(STATUS "lsoftmax_op: ${jobs} of ${cores} cores compile, as many as the free memory holds")
    endif()
  endif()
endif()

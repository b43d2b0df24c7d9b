# Records the size of each installed library in the _build_info.json beside it, so that lsoftmax_op/library.py can refuse
# one of which a part is missing. `cmake --install` runs this. Whoever makes the libraries smaller afterwards (strip) runs
# it anew; auditwheel and patchelf, which make them larger, need not:
#
#   cmake -DPACKAGE=.../lsoftmax_op -P build_tools/cmake/record_sizes.cmake
if(NOT PACKAGE)
  set(PACKAGE $ENV{DESTDIR}${CMAKE_INSTALL_PREFIX})
endif()
file(GLOB infos ${PACKAGE}/_build_info.json ${PACKAGE}/tf-*/_build_info.json)
foreach(info IN LISTS infos)
  cmake_path(GET info PARENT_PATH folder)
  file(GLOB libraries ${folder}/_lsoftmax_*.so)
  set(sizes)
  foreach(library IN LISTS libraries)
    cmake_path(GET library FILENAME name)
    file(SIZE ${library} size)
    list(APPEND sizes "\"${name}\": ${size}")
  endforeach()
  list(JOIN sizes ", " sizes)
  file(READ ${info} text)
  string(REGEX REPLACE "\"sizes\": {[^}]*}" "\"sizes\": {${sizes}}" text "${text}")
  file(WRITE ${info} "${text}")
endforeach()

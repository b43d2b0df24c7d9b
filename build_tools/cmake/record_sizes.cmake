# Records the size of each installed op library in _build_info.json, so that lsoftmax_op/library.py can refuse one of
# which a part is missing. `cmake --install` runs this. Whoever makes the libraries smaller afterwards (strip) runs it
# anew; auditwheel and patchelf, which make them larger, need not:
#
#   cmake -DPACKAGE=.../lsoftmax_op -P build_tools/cmake/record_sizes.cmake
if(NOT PACKAGE)
  set(PACKAGE $ENV{DESTDIR}${CMAKE_INSTALL_PREFIX})
endif()
file(GLOB libraries ${PACKAGE}/_lsoftmax_*.so)
foreach(library IN LISTS libraries)
  cmake_path(GET library FILENAME name)
  file(SIZE ${library} size)
  list(APPEND sizes "\"${name}\": ${size}")
endforeach()
list(JOIN sizes ", " sizes)
file(READ ${PACKAGE}/_build_info.json info)
string(REGEX REPLACE "\"sizes\": {[^}]*}" "\"sizes\": {${sizes}}" info "${info}")
file(WRITE ${PACKAGE}/_build_info.json "${info}")

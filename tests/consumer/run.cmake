# cmake -DMODE=installed|subdirectory|fetched|sources -DSOURCE=<rbar> -DBUILD=<folder> -DCXX=<compiler> -P run.cmake
# Builds and runs the consumer project. "installed" installs rbar first; "sources" finds no package of any
# dependency and takes them from sources, as a machine without them would (HEADERS: where those sources are).
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${ARGN}\n${output}")
  endif()
endfunction()

set(configure ${CMAKE_COMMAND} -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX})
set(how -DMODE=${MODE} -DRBAR_SOURCE_DIR=${SOURCE})
file(REMOVE_RECURSE ${BUILD})
if(MODE STREQUAL "installed")
  # Configured without tests and examples, so that only the headers' own dependencies are asked for.
  run(${configure} -S ${SOURCE} -B ${BUILD}/rbar -DRBAR_BUILD_TESTS=OFF -DRBAR_BUILD_EXAMPLES=OFF
      -DRBAR_BUILD_BENCH=OFF -DCMAKE_INSTALL_PREFIX=${BUILD}/prefix)
  run(${CMAKE_COMMAND} --install ${BUILD}/rbar)
  # The package must not depend on where it was built or installed.
  file(REMOVE_RECURSE ${BUILD}/rbar)
  file(RENAME ${BUILD}/prefix ${BUILD}/moved)
  list(APPEND how -DCMAKE_PREFIX_PATH=${BUILD}/moved)
elseif(MODE STREQUAL "sources")
  set(how -DMODE=subdirectory -DRBAR_SOURCE_DIR=${SOURCE})
  foreach(package IN ITEMS Eigen3 xsimd nlohmann_json)
    list(APPEND how -DCMAKE_DISABLE_FIND_PACKAGE_${package}=ON)
  endforeach()
  list(APPEND how -DRBAR_WITNESS=OFF -DFETCHCONTENT_SOURCE_DIR_EIGEN=${EIGEN_HEADERS} -DFETCHCONTENT_SOURCE_DIR_XSIMD=${XSIMD_PREFIX})
endif()
run(${configure} -S ${CMAKE_CURRENT_LIST_DIR}/project -B ${BUILD}/consumer ${how})
run(${CMAKE_COMMAND} --build ${BUILD}/consumer)
run(${BUILD}/consumer/consumer)

# cmake -P cmake/test.cmake: sets the machine up, builds everything and runs the tests.
include(${CMAKE_CURRENT_LIST_DIR}/bootstrap.cmake)
rbar_build(all)
cmake_host_system_information(RESULT cores QUERY NUMBER_OF_LOGICAL_CORES)
rbar_run(${CMAKE_CTEST_COMMAND} --test-dir "${RBAR_BUILD}" --output-on-failure --parallel ${cores})

# cmake [-DTEXT=FILE] -P cmake/demo.cmake: sets the machine up, trains three small models on the same text
# (FILE, or the Eigen headers that this very build uses) and shows what they learnt. Under three minutes.
include(${CMAKE_CURRENT_LIST_DIR}/bootstrap.cmake)
rbar_build(demo)
if(DEFINED TEXT)
  get_filename_component(TEXT "${TEXT}" ABSOLUTE BASE_DIR "${CMAKE_CURRENT_BINARY_DIR}")
  list(APPEND arguments --text "${TEXT}")
endif()
rbar_run("${RBAR_BUILD}/examples/demo" ${arguments})

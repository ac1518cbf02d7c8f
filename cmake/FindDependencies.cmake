# How rbar finds what its headers need; used by the build and by an installed rbarConfig.cmake.
# Each macro leaves the dependency's own target behind, or no target when there is none.

# Eigen 3.4 up to 5. A version range is refused by some of its packages, so a plain search follows.
macro(rbar_find_eigen)
  if(NOT TARGET Eigen3::Eigen)
    find_package(Eigen3 3.4...5 CONFIG QUIET)
    if(NOT Eigen3_FOUND)
      find_package(Eigen3 CONFIG QUIET)
      if(Eigen3_FOUND AND (Eigen3_VERSION VERSION_LESS 3.4 OR Eigen3_VERSION VERSION_GREATER_EQUAL 6))
        message(FATAL_ERROR "rbar needs Eigen 3.4 to 5, found ${Eigen3_VERSION} in ${Eigen3_DIR}")
      endif()
    endif()
  endif()
endmacro()

# xsimd 8.1 up to 14: every release has the bare target "xsimd".
macro(rbar_find_xsimd)
  if(NOT TARGET xsimd)
    find_package(xsimd CONFIG QUIET)
    if(xsimd_FOUND AND (xsimd_VERSION VERSION_LESS 8.1 OR xsimd_VERSION VERSION_GREATER_EQUAL 15))
      message(FATAL_ERROR "rbar needs xsimd 8.1 to 14, found ${xsimd_VERSION} in ${xsimd_DIR}")
    endif()
    # Debian's xsimd links a library "xtl" that it neither needs nor installs.
    if(TARGET xsimd AND NOT TARGET xtl)
      get_target_property(rbar_xsimd_links xsimd INTERFACE_LINK_LIBRARIES)
      if(rbar_xsimd_links)
        list(REMOVE_ITEM rbar_xsimd_links xtl)
        set_target_properties(xsimd PROPERTIES INTERFACE_LINK_LIBRARIES "${rbar_xsimd_links}")
      endif()
      unset(rbar_xsimd_links)
    endif()
  endif()
endmacro()

# libsodium (any 1.0): it brings no CMake package, so the target "sodium" is a parent's, vcpkg's, or made of the
# header and the library.
macro(rbar_find_sodium)
  if(NOT TARGET sodium)
    find_package(unofficial-sodium CONFIG QUIET)
    find_path(RBAR_SODIUM_INCLUDE_DIR sodium.h)
    find_library(RBAR_SODIUM_LIBRARY sodium)
    mark_as_advanced(RBAR_SODIUM_INCLUDE_DIR RBAR_SODIUM_LIBRARY)
    if(TARGET unofficial-sodium::sodium)
      add_library(sodium INTERFACE IMPORTED)
      target_link_libraries(sodium INTERFACE unofficial-sodium::sodium)
    elseif(RBAR_SODIUM_INCLUDE_DIR AND RBAR_SODIUM_LIBRARY)
      add_library(sodium UNKNOWN IMPORTED)
      set_target_properties(sodium PROPERTIES IMPORTED_LOCATION "${RBAR_SODIUM_LIBRARY}"
                                              INTERFACE_INCLUDE_DIRECTORIES "${RBAR_SODIUM_INCLUDE_DIR}")
    endif()
  endif()
endmacro()

# Spectra 1.x, headers over Eigen. Its own package would look for Eigen again, which may not be an installed one here.
macro(rbar_find_spectra)
  if(NOT TARGET Spectra::Spectra)
    find_path(RBAR_SPECTRA_INCLUDE_DIR Spectra/SymEigsSolver.h)
    mark_as_advanced(RBAR_SPECTRA_INCLUDE_DIR)
    if(RBAR_SPECTRA_INCLUDE_DIR)
      add_library(Spectra::Spectra INTERFACE IMPORTED)
      set_target_properties(Spectra::Spectra PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${RBAR_SPECTRA_INCLUDE_DIR}")
    endif()
  endif()
endmacro()

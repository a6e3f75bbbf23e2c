# THERMOCLINE_HAS_CUDA: whether there is an nvcc that compiles for all our targets. Looked for on the PATH, by CUDACXX
# and in its usual folder.
set(THERMOCLINE_CUDA AUTO CACHE STRING "AUTO: build the CUDA parts if nvcc is there; ON: fail if it is not; OFF")
set(THERMOCLINE_HAS_CUDA OFF)
set(oldest_nvcc 12.9)  # knows sm_120f

if(THERMOCLINE_CUDA)
  if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(THERMOCLINE_NVCC nvcc HINTS /usr/local/cuda/bin)
    mark_as_advanced(THERMOCLINE_NVCC)
    if(THERMOCLINE_NVCC)
      set(CMAKE_CUDA_COMPILER ${THERMOCLINE_NVCC})
    endif()
  endif()
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # cuda/CMakeLists.txt names them
  if(THERMOCLINE_CUDA STREQUAL AUTO)
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(CMAKE_CUDA_COMPILER OR NOT THERMOCLINE_CUDA STREQUAL AUTO)
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL ${oldest_nvcc})
      set(THERMOCLINE_HAS_CUDA ON)
    elseif(THERMOCLINE_CUDA STREQUAL AUTO)
      message(WARNING "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than ${oldest_nvcc}: building without CUDA")
    else()
      message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than ${oldest_nvcc}: install a newer CUDA toolkit")
    endif()
    if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # cmake 3.25.1 does not know it, nvcc does since 12.0
      set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
    endif()
    # A package that names /usr/include again would hide it from the #include_next of the C++ library.
    list(APPEND CMAKE_CUDA_IMPLICIT_INCLUDE_DIRECTORIES ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})
  endif()
endif()
message(STATUS "CUDA parts: ${THERMOCLINE_HAS_CUDA}")

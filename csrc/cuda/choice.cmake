# Is the CUDA library built? Sets PYPRUNE_BUILD_CUDA from
#   PYPRUNE_CUDA   auto: where nvcc is there and the installed torch has CUDA; 1: always, as for a wheel; 0: never
#   PYPRUNE_TORCH  folder of the installed torch package
# and PYPRUNE_TORCH_HAS_CUDA. No GPU is looked for: the machine that builds need not be the one that runs.
# It runs by itself too: cmake -DPYPRUNE_CUDA=auto -DPYPRUNE_TORCH=... -P csrc/cuda/choice.cmake
cmake_minimum_required(VERSION 3.25)
if(NOT DEFINED PYPRUNE_CUDA)
  set(PYPRUNE_CUDA auto)
endif()
if(NOT PYPRUNE_CUDA MATCHES "^(auto|0|1)$")
  message(FATAL_ERROR "PYPRUNE_CUDA: '${PYPRUNE_CUDA}' is not a choice; auto, 0 or 1 is expected")
endif()

# By CMake's own rule: $CUDACXX, else nvcc on the PATH; then where NVIDIA's installers put it.
find_program(PYPRUNE_NVCC NAMES $ENV{CUDACXX} nvcc PATHS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
set(PYPRUNE_TORCH_HAS_CUDA OFF)
if(EXISTS "${PYPRUNE_TORCH}/lib/libtorch_cuda.so")
  set(PYPRUNE_TORCH_HAS_CUDA ON)
endif()

set(PYPRUNE_BUILD_CUDA OFF)
if(PYPRUNE_CUDA STREQUAL "0")
  set(PYPRUNE_CUDA_REASON "PYPRUNE_CUDA=0")
elseif(PYPRUNE_CUDA STREQUAL "1" AND NOT PYPRUNE_NVCC)
  message(FATAL_ERROR "PYPRUNE_CUDA=1, but there is no nvcc: put the CUDA toolkit's bin folder on the PATH or set CUDACXX")
elseif(NOT PYPRUNE_NVCC)
  set(PYPRUNE_CUDA_REASON "there is no nvcc")
elseif(PYPRUNE_CUDA STREQUAL "auto" AND NOT PYPRUNE_TORCH_HAS_CUDA)
  set(PYPRUNE_CUDA_REASON "the installed torch has no CUDA")
else()
  set(PYPRUNE_BUILD_CUDA ON)
endif()

if(NOT PYPRUNE_BUILD_CUDA)
  message(STATUS "pyprune: no CUDA library: ${PYPRUNE_CUDA_REASON}")
elseif(PYPRUNE_TORCH_HAS_CUDA)
  message(STATUS "pyprune: CUDA library with ${PYPRUNE_NVCC}")
else()
  message(STATUS "pyprune: CUDA library with ${PYPRUNE_NVCC}, for a torch with CUDA: this one has none and never loads it")
endif()

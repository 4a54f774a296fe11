"""GPU kernels in Triton, one stage a file. This folder is installed as `pyprune.triton_kernels`.

There are none yet: on a GPU the operators run as their plain PyTorch definitions.
"""
